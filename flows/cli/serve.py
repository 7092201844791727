"""`fmnist serve`: run everything that scheduled and triggered runs need on one machine."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from flows.cli.services import prepare_prefect
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from infra.orchestration.server import Server


def serve(
    *,
    port: Annotated[int, Parameter(help="Port of Prefect's UI and API.", validator=Number(gte=1, lte=65535))] = 4200,
) -> None:
    """Run Prefect's server and UI, Ray, and a worker for the deployments, until you press Ctrl-C.

    If PREFECT_API_URL or FMNIST_RAY_ADDRESS is set, the server or the cluster at that address is used instead.
    """
    from infra.storage.object_store import open_store
    from tasks.preflight import check_state_folder

    console = Console(stderr=True)
    settings = load_settings()
    open_store(settings.store).check_writable()
    check_state_folder(settings)
    with _until_stopped() as stopped, ExitStack() as stack:
        os.environ |= {"FMNIST_STORE": settings.store, "FMNIST_STATE_DIR": str(settings.state_dir)}
        os.environ.setdefault("FMNIST_RETRIES", "3")  # as in infra/deploy/prefect.yaml
        with console.status("Starting Prefect and Ray"):
            server, ray = _start_services(settings, port, stack)
        with console.status("Deploying the flows"):
            from infra.orchestration.deployments import create_automations, deploy_all

            deploy_all()
            create_automations()
            from infra.orchestration.worker import prefect_worker

            worker = stack.enter_context(prefect_worker(settings.state_dir / "worker.log"))
        is_training = _train_first_model()
        _print_addresses(console, settings, ray, is_training=is_training)
        while not stopped.wait(1):
            for name, process in (("Prefect's server", server), ("Prefect's worker", worker)):
                if process is not None and process.has_ended():
                    console.print(f"{name} ended unexpectedly. Restarting it.", highlight=False)
                    process.start()
        console.print("Stopping all runs, the worker, Ray and Prefect", highlight=False, soft_wrap=True)


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C, SIGTERM or SIGHUP sets. A second signal raises KeyboardInterrupt."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:  # as under `nohup`
        del before[signal.SIGHUP]

    def stop(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    try:
        for number in before:
            signal.signal(number, stop)
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_services(settings: Settings, port: int, stack: ExitStack) -> "tuple[Server | None, str]":
    """Start Prefect's server and Ray if they are not configured, and set their addresses for the worker and its runs.

    Returns:
        Prefect's server, or None if it was not started here, and the dashboard's URL or the address of Ray.
    """
    from infra.cluster.local_ray import ray_head
    from infra.orchestration.server import client_settings, permanent_home, prefect_server

    prepare_prefect(permanent_home(settings.state_dir))
    from prefect.settings import get_current_settings

    configured = get_current_settings().api.url
    server = None if configured else stack.enter_context(prefect_server(settings.state_dir, port))
    if settings.ray_address is None:
        os.environ["FMNIST_RAY_ADDRESS"], ray = stack.enter_context(ray_head())
    else:
        ray = settings.ray_address
    if server is None:
        os.environ["PREFECT_API_URL"] = str(configured)
    else:
        stack.enter_context(client_settings(server.wait_until_healthy()))
    return server, ray


def _train_first_model() -> bool:
    """Start a training run if no champion exists to classify with. Return whether it did."""
    from infra.orchestration.deployments import run_deployment
    from infra.storage.model_registry import ModelRegistry
    from infra.storage.object_store import open_store

    if ModelRegistry(open_store(load_settings().store)).alias("champion") is not None:
        return False
    run_deployment("train/train", {"parameters": {"preset": "quick"}}, "first-model")
    return True


def _print_addresses(console: Console, settings: Settings, ray: str, *, is_training: bool) -> None:
    prefect = os.environ["PREFECT_API_URL"].removesuffix("/api")
    lines = [
        f"  Prefect      {prefect}",
        f"  Ray          {ray}",
        f"  store        {settings.store}",
        f"  deployments  {prefect}/deployments: train, classify, train-and-classify",
        "No champion exists yet. The run first-model trains one with the preset quick." if is_training else "",
        "Press Ctrl-C to stop everything, including runs in progress. Retry a run to resume it.",
    ]
    for line in filter(None, lines):
        console.print(line, highlight=False, soft_wrap=True)
