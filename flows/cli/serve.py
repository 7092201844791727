"""`fmnist serve`: all that scheduled and triggered runs need, on one machine."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from infra.orchestration.server import Server


def serve(
    *,
    port: Annotated[int, Parameter(help="Of Prefect's pages and API.", validator=Number(gte=1, lte=65535))] = 4200,
) -> None:
    """Run Prefect's server and pages, Ray, and a worker for the deployments, until Ctrl-C ends all of it.

    What PREFECT_API_URL and FMNIST_RAY_ADDRESS name is used, where they are set, and not started.
    """
    from infra.storage.object_store import open_store
    from tasks.preflight import check_state_folder

    console = Console(stderr=True)
    settings = load_settings()
    open_store(settings.store).check_writable()
    check_state_folder(settings)
    with _until_told() as told, ExitStack() as stack:
        os.environ |= {"FMNIST_STORE": settings.store, "FMNIST_STATE_DIR": str(settings.state_dir)}
        os.environ.setdefault("FMNIST_RETRIES", "3")  # as infra/deploy/prefect.yaml has it
        with console.status("Starting Prefect and Ray"):
            server, ray = _start_services(settings, port, stack)
        with console.status("Deploying the flows"):
            from infra.orchestration.deployments import deploy_all, keep_automations

            deploy_all()
            keep_automations()
            from infra.orchestration.worker import prefect_worker

            worker = stack.enter_context(prefect_worker(settings.state_dir / "worker.log"))
        first = _first_model()
        _print_addresses(console, settings, ray, first=first)
        while not told.wait(1):
            for name, process in (("Prefect's server", server), ("Prefect's worker", worker)):
                if process is not None and process.has_ended():
                    console.print(f"{name} ended by itself, and is started again.", highlight=False)
                    process.start()
        console.print("Ending the runs, the worker, Ray and Prefect", highlight=False, soft_wrap=True)


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, the first time; the second Ctrl-C interrupts."""
    told = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def tell(*_: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    try:
        for number in before:
            signal.signal(number, tell)
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_services(settings: Settings, port: int, stack: ExitStack) -> "tuple[Server | None, str]":
    """Start what is not configured, side by side, and name it to the processes that are started later.

    Returns:
        Prefect's server, where it was started here; and where Ray is to be looked at, or found.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    from infra.cluster.local_ray import ray_head
    from infra.orchestration.server import prefect_server

    configured = get_current_settings().api.url
    server = None if configured else stack.enter_context(prefect_server(settings.state_dir, port))
    if settings.ray_address is None:
        os.environ["FMNIST_RAY_ADDRESS"], ray = stack.enter_context(ray_head())
    else:
        ray = settings.ray_address
    os.environ["PREFECT_API_URL"] = server.wait_until_healthy() if server else str(configured)
    stack.enter_context(temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}))
    return server, ray


def _first_model() -> bool:
    """Have a first model trained where there is none to classify with.

    Returns:
        Whether that was necessary.
    """
    from infra.orchestration.deployments import run_deployment
    from infra.storage.model_registry import ModelRegistry
    from infra.storage.object_store import open_store

    if ModelRegistry(open_store(load_settings().store)).alias("champion") is not None:
        return False
    run_deployment("train/train", {"parameters": {"preset": "quick"}}, "first-model")
    return True


def _print_addresses(console: Console, settings: Settings, ray: str, *, first: bool) -> None:
    pages = os.environ["PREFECT_API_URL"].removesuffix("/api")
    lines = [
        f"  Prefect      {pages}",
        f"  Ray          {ray}",
        f"  store        {settings.store}",
        f"  deployments  {pages}/deployments: train, classify, train-and-classify",
        "There is no champion yet: the run first-model trains one, by the preset quick." if first else "",
        "Ctrl-C ends all of it, and the runs that are under way; a retry goes on with them.",
    ]
    for line in filter(None, lines):
        console.print(line, highlight=False, soft_wrap=True)
