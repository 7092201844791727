"""Show, cancel, time out and retry flow runs, and make them wait for each other."""

import contextvars
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import psutil
import pytest
import torch
from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client

from fmnist_model.network import NeuralNetwork, save_weights
from infra.cluster.actor_pool import map_shards
from infra.cluster.connection import connected_to_ray
from infra.cluster.progress_board import ProgressBoard
from infra.cluster.resources import ActorResources
from infra.cluster.waiting import call_interruptibly
from infra.cluster.worker_logs import forward_logs
from infra.orchestration import one_at_a_time as concurrency
from infra.orchestration import server as prefect_server
from infra.orchestration.events import MODEL_PROMOTED
from infra.orchestration.flow_progress import shows_progress
from infra.orchestration.flow_run import retried_since, task_run_id
from infra.orchestration.one_at_a_time import one_at_a_time
from infra.storage.checkpoints import WEIGHTS, write_checkpoint
from infra.storage.model_registry import ModelRegistry
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import ShardRecord
from tasks.classification.actor import shard_name
from tasks.classification.classify import BatchProgress
from tasks.step import step
from tasks.training.begin import begin_run
from tasks.training.register import promote_version
from tasks.training.run import RunToTrain
from tests.harness.commands import fmnist, one_clear_line, printed

T = TypeVar("T")

POSTS = 2_000
POSTING_SECONDS = 3


@pytest.fixture(scope="module")
def client(running_services: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def until(find: Callable[[], T], seconds: float) -> T:
    """Return a result as soon as it is true, or the last one after the timeout."""
    deadline = time.monotonic() + seconds
    while not (last := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return last


# Progress and logs of a flow run


def log_a_line() -> None:
    forward_logs("rank 7")
    logging.getLogger("tasks.training.train").info("at work")


@step("work")
def work(posts: int, seconds: float) -> str | None:
    """Log a line in a worker, and post progress. Returns the id of the task run."""
    import ray

    ray.get(ray.remote(log_a_line).options(num_cpus=0).remote())
    board, task_run = ProgressBoard(), task_run_id()
    for number in range(posts):
        board.post("work", f"Working: {number + 1}", (number + 1) / posts, task_run_id=task_run)
        time.sleep(seconds / posts)
    return task_run


@flow(name="test: shows its work")
@connected_to_ray
@shows_progress
def shows_its_work(posts: int, seconds: float) -> str | None:
    return work(posts, seconds)


@dataclass(frozen=True)
class Shown:
    """What Prefect's API shows about a flow run."""

    task_run: str
    artifacts: list[Any]
    log: list[str]
    """Messages of the run's log."""
    updates: int
    """Number of requests that updated an artifact."""
    seconds: float


@pytest.fixture(scope="module")
def shown(client: SyncPrefectClient) -> Shown:
    updates = 0
    update = SyncPrefectClient.update_artifact

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal updates
        updates += 1
        update(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SyncPrefectClient, "update_artifact", counted)
        started = time.monotonic()
        state = shows_its_work(POSTS, POSTING_SECONDS, return_state=True)
        seconds = time.monotonic() - started
    run = state.state_details.flow_run_id
    assert run is not None
    log = until(lambda: [line for line in log_of(client, run) if "at work" in line] and log_of(client, run), 20)
    return Shown(state.result(), artifacts_of(client, run), log, updates, seconds)


def artifacts_of(client: SyncPrefectClient, flow_run: UUID) -> list[Any]:
    answer = client._client.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [str(flow_run)]}}})
    return list(answer.json())


def log_of(client: SyncPrefectClient, flow_run: UUID) -> list[str]:
    wanted = {"logs": {"flow_run_id": {"any_": [str(flow_run)]}}, "sort": "TIMESTAMP_ASC"}
    return [line["message"] for line in client._client.post("/logs/filter", json=wanted).json()]


def test_log_has_the_workers_line_with_its_source(shown: Shown) -> None:
    assert "[rank 7] at work" in shown.log


def test_stage_has_one_progress_artifact(shown: Shown) -> None:
    assert [(found["key"], found["type"]) for found in shown.artifacts] == [("work-progress", "progress")]


def test_progress_artifact_belongs_to_the_task_run(shown: Shown) -> None:
    assert [found["task_run_id"] for found in shown.artifacts] == [shown.task_run]


def test_progress_ends_at_100_percent(shown: Shown) -> None:
    assert [(found["data"], found["description"]) for found in shown.artifacts] == [(100, f"Working: {POSTS}")]


def test_progress_is_updated_at_most_once_a_second(shown: Shown) -> None:
    assert 1 <= shown.updates <= shown.seconds + 1


def test_log_does_not_grow_with_the_number_of_posts(shown: Shown) -> None:
    assert sum("Working: " in line for line in shown.log) <= 1 + shown.seconds / 10


@flow(name="test: shows nothing")
@connected_to_ray
@shows_progress
def shows_nothing() -> None:
    time.sleep(1.5)  # longer than the poll interval


def test_flow_run_does_not_show_the_progress_of_an_earlier_one(client: SyncPrefectClient, shown: Shown) -> None:
    run = shows_nothing(return_state=True).state_details.flow_run_id
    assert run is not None
    assert artifacts_of(client, run) == []


@flow(name="test: goes through a stage")
@connected_to_ray
@shows_progress
def goes_through_a_stage() -> None:
    board = ProgressBoard()
    for stage, share in (("first", 0.2), ("first", 0.9), ("second", None)):
        board.post(stage, stage, share)
        time.sleep(2.5)  # longer than the poll interval, and shorter than the update interval of artifacts


def test_artifact_of_a_finished_stage_has_its_last_value(client: SyncPrefectClient) -> None:
    run = goes_through_a_stage(return_state=True).state_details.flow_run_id
    assert run is not None
    assert [(found["key"], found["data"]) for found in artifacts_of(client, run)] == [("first-progress", 90)]


@flow(name="test: logs a line")
def logs_a_line() -> None:
    get_run_logger().info("to be deleted")


def test_embedded_server_runs_its_background_tasks(client: SyncPrefectClient) -> None:
    run = logs_a_line(return_state=True).state_details.flow_run_id
    assert run is not None
    assert until(lambda: "to be deleted" in log_of(client, run), 20)
    client.delete_flow_run(run)  # the server deletes the log in a background task
    assert until(lambda: not log_of(client, run), 20)


def test_progress_of_a_batch_includes_shards_in_progress(running_services: None) -> None:
    plan = BatchPlan(table="mine", batch="b", number=1, model_version="1", options={}, shards=3, planned=3_000)
    board = ProgressBoard()
    board.clear()
    with BatchProgress(plan, [ShardRecord(shard=2, planned=1_000, predicted=1_000, quarantined=0)]) as progress:
        board.advance(shard_name(plan, 0), 400)
        board.advance(shard_name(plan, 2), 900)  # this shard is already done
        board.advance("other/1", 50)  # this shard belongs to another batch
        assert until(lambda: board.read().get("images") == 1_400, 10)
        assert board.read()["shards_done"] == 1
        progress.add(ShardRecord(shard=0, planned=1_000, predicted=990, quarantined=10))
        assert until(lambda: board.read()["images"] == 2_000, 10)
        assert "2/3 shards, 2,000/3,000 images, 10 quarantined" in board.read()["text"]
        assert shard_name(plan, 0) not in board.shards()
    board.clear()


# Cancels and signals


PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

from flows.cli.services import prepare_environment

prepare_environment()

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.cli.services import services
from infra.cluster.connection import connected_to_ray
from infra.cluster.waiting import call_interruptibly
from infra.orchestration.flow_progress import shows_progress
from infra.settings import load_settings
from tasks.step import step


def sleep(pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600)


@step("wait")
def wait(pid_file: str) -> None:
    import ray

    asleep = ray.remote(sleep).options(num_cpus=0).remote(pid_file)
    call_interruptibly(lambda: ray.get(asleep))


@flow
@connected_to_ray
@shows_progress
def waits(pid_file: str) -> None:
    report(flow_run=flow_run.id)
    wait(pid_file)


def report(**found):
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    before = signal.getsignal(signal.SIGTERM)
    with services(load_settings()):
        report(api=os.environ["PREFECT_API_URL"], handler_kept=signal.getsignal(signal.SIGTERM) is before)
        state = waits(sys.argv[1], return_state=True)
        with get_client(sync_client=True) as client:
            found = client.read_flow_run(state.state_details.flow_run_id).state
        report(state=found.name, type=found.type.value, message=found.message)
"""


@dataclass(frozen=True)
class Cancelled:
    """Outcome of a run that was cancelled while it waited for its Ray task."""

    handler_kept: bool
    """Whether the process kept its SIGTERM handler when it started Ray."""
    state: dict[str, str]
    seconds: float
    """Time from the cancel to the final state."""
    task_process: int
    """Process id of the Ray task."""
    exit_code: int


@pytest.fixture(scope="module")
def cancelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cancelled]:
    """Cancel a run in a process with its own services, because the cancel is a signal to the whole process."""
    folder = tmp_path_factory.mktemp("cancelled")
    (folder / "program.py").write_text(PROGRAM)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_API", "FMNIST_"))}
    settings = {"FMNIST_STATE_DIR": str(folder / "state"), "FMNIST_STORE": str(folder / "store")}
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, folder / "program.py", folder / "task"],
            cwd=folder,
            env=ours | settings | paths,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield cancel(process, folder)
    finally:
        process.kill()


def cancel(process: "subprocess.Popen[str]", folder: Path) -> Cancelled:
    def reported() -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "errors").read_text()
        return dict(json.loads(line))

    start = reported()
    flow_run = reported()["flow_run"]
    task = folder / "task"
    assert until(lambda: task.exists() and task.read_text(), 60), (folder / "errors").read_text()
    cancelled_at = time.monotonic()
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    httpx.post(f"{start['api']}/flow_runs/{flow_run}/set_state", json=body, trust_env=False).raise_for_status()
    state = reported()
    seconds = time.monotonic() - cancelled_at
    return Cancelled(start["handler_kept"], state, seconds, int(task.read_text()), process.wait(timeout=60))


def test_cancel_without_a_prefect_worker_ends_the_run(cancelled: Cancelled) -> None:
    assert (cancelled.state["type"], cancelled.state["state"]) == ("CANCELLED", "Cancelled")


def test_cancel_without_a_prefect_worker_takes_at_most_15_seconds(cancelled: Cancelled) -> None:
    assert cancelled.seconds < 15


def test_cancelled_run_leaves_no_task_on_ray(cancelled: Cancelled) -> None:
    assert until(lambda: not psutil.pid_exists(cancelled.task_process), 10)


def test_cancel_ends_the_flow_but_not_its_process(cancelled: Cancelled) -> None:
    assert cancelled.exit_code == 0


def test_start_of_ray_keeps_the_sigterm_handler(cancelled: Cancelled) -> None:
    assert cancelled.handler_kept


TWO_CLUSTERS = """
from flows.cli.services import prepare_environment

prepare_environment()

import ray

from infra.cluster.local_ray import ray_head


@ray.remote
def count_actors():
    from ray.util.state import list_actors

    return len(list_actors())


with ray_head():
    print(ray.get(count_actors.remote()))
"""


def test_rays_own_actors_find_their_cluster_among_several(running_services: None, tmp_path: Path) -> None:
    # Otherwise, Ray Train's actor that cleans up after a killed run would find no cluster, and stay.
    assert printed(TWO_CLUSTERS, tmp_path) == ["0"]


@pytest.mark.slow
def test_error_for_a_wrong_token_names_the_settings(running_services: None, tmp_path: Path) -> None:
    import ray

    cluster = {"FMNIST_RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_TOKEN": "0" * 64}
    result = fmnist("train", FMNIST_STORE=str(tmp_path / "store"), FMNIST_STATE_DIR=str(tmp_path / "state"), **cluster)
    assert "FMNIST_RAY_ADDRESS" in one_clear_line(result)
    assert "RAY_AUTH_TOKEN" in one_clear_line(result)
    assert result.returncode == 2


# Timeouts


def sleep(pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(120)


class Sleeper:
    def ready(self) -> None: ...

    def work(self, pid_file: str) -> None:
        sleep(pid_file)


class Interrupted(Exception):
    pass


def interrupt(*_: object) -> None:
    raise Interrupted


def test_signal_interrupts_a_pool_and_leaves_no_actor(running_services: None, tmp_path: Path) -> None:
    pid_file = tmp_path / "process"
    before = signal.signal(signal.SIGUSR1, interrupt)

    def send_signal() -> None:
        until(pid_file.exists, 60)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=send_signal).start()
    try:
        with (
            pytest.raises(Interrupted),
            map_shards(Sleeper, (), [str(pid_file)], ActorResources(worker_cpus=0.01), what="Sleeping") as results,  # type: ignore[list-item]
        ):
            list(results)
    finally:
        signal.signal(signal.SIGUSR1, before)
    process = int(pid_file.read_text())
    assert until(lambda: not psutil.pid_exists(process), 10)


@flow(timeout_seconds=8)
def times_out_in_a_blocking_call(pid_file: str) -> None:
    import ray

    asleep = ray.remote(sleep).options(num_cpus=0).remote(pid_file)
    try:
        call_interruptibly(lambda: ray.get(asleep))
    finally:
        ray.cancel(asleep, force=True)


def test_timeout_interrupts_a_call_that_blocks_in_ray(client: SyncPrefectClient, tmp_path: Path) -> None:
    started = time.monotonic()
    state = times_out_in_a_blocking_call(str(tmp_path / "process"), return_state=True)
    assert state.name == "TimedOut"
    assert time.monotonic() - started < 60  # the task sleeps for 120 s


# Retries


@pytest.fixture
def store(running_services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Return a store for this test, which the settings point to."""
    monkeypatch.setenv("FMNIST_STORE", str(tmp_path / "store"))
    return open_store(f"file://{tmp_path}/store")


def begin_twice(before_retry: Callable[[RunToTrain], None]) -> tuple[RunToTrain, RunToTrain]:
    """Begin a training run in a flow run, and again in a retry of the flow run."""
    runs: list[RunToTrain] = []

    @flow(name="test: is retried", retries=1, retry_delay_seconds=0)
    def is_retried() -> None:
        runs.append(begin_run("quick", {"epochs": 3}, resume=None))
        if len(runs) == 1:
            before_retry(runs[0])
            raise RuntimeError("once")

    is_retried()
    first, second = runs
    return first, second


def write_first_epoch(store: ObjectStore, run: RunToTrain) -> None:
    write_checkpoint(
        store,
        run_id=run.id,
        epoch=1,
        files={WEIGHTS: save_weights(NeuralNetwork())},
        metrics={},
        parameters=asdict(run.recipe) | {"seed": 4321},
        data_version="tests",
    )


def test_retry_continues_the_same_training_run(store: ObjectStore) -> None:
    first, second = begin_twice(lambda _: None)
    assert second == first


def test_retry_resumes_from_the_checkpoint(store: ObjectStore) -> None:
    first, second = begin_twice(lambda run: write_first_epoch(store, run))
    assert second == RunToTrain(first.id, replace(first.recipe, seed=4321))


@pytest.mark.usefixtures("running_services")
def test_retry_knows_when_the_flow_run_first_started() -> None:
    found: list[datetime | None] = []

    @flow(name="test: is retried", retries=1, retry_delay_seconds=0)
    def is_retried() -> None:
        found.append(retried_since())
        if len(found) == 1:
            raise RuntimeError("once")

    before = datetime.now(UTC)
    is_retried()
    first, second = found
    assert first is None
    assert second is not None
    assert before - timedelta(seconds=1) <= second <= datetime.now(UTC)


def test_each_flow_run_begins_a_new_training_run(store: ObjectStore) -> None:
    @flow(name="test: begins a run")
    def begins() -> str:
        return begin_run("quick", {}, resume=None).id

    assert begins() != begins()


def test_subflow_begins_the_training_run_of_its_parent(store: ObjectStore) -> None:
    @flow(name="test: begins a run")
    def begins() -> str:
        return begin_run("quick", {}, resume=None).id

    @flow(name="test: begins a run in a subflow")
    def begins_in_a_subflow() -> tuple[str, str]:
        return begin_run("quick", {}, resume=None).id, begins()

    own, of_the_subflow = begins_in_a_subflow()
    assert of_the_subflow == own


def test_each_call_outside_of_a_flow_begins_a_new_training_run(store: ObjectStore) -> None:
    assert begin_run.fn("quick", {}, resume=None).id != begin_run.fn("quick", {}, resume=None).id


# Events


def register_versions(store: ObjectStore, count: int) -> None:
    for epoch in range(1, count + 1):
        torch.manual_seed(epoch)
        record = write_checkpoint(
            store,
            run_id="run",
            epoch=epoch,
            files={WEIGHTS: save_weights(NeuralNetwork())},
            metrics={},
            parameters={},
            data_version="tests",
        )
        ModelRegistry(store).register(
            run_id="run",
            epoch=epoch,
            weights_sha256=record.files[0].sha256,
            metrics={"test_accuracy": 0.9 + epoch / 100},
            parameters={},
            data_version="tests",
        )


def promotions(client: SyncPrefectClient, since: str) -> list[dict[str, Any]]:
    """Return the payloads of the promotion events, oldest first."""
    wanted = {"event": {"name": [MODEL_PROMOTED]}, "occurred": {"since": since}, "order": "ASC"}
    answer = client._client.post("/events/filter", json={"filter": wanted}).raise_for_status()
    return [event["payload"] for event in answer.json()["events"]]


def test_only_a_change_of_champion_is_an_event(store: ObjectStore, client: SyncPrefectClient) -> None:
    since = datetime.now(UTC).isoformat()
    register_versions(store, 2)
    for number in (1, 1, 2, 2, 1):
        promote_version(store, number, force=True)
    expected = [{"version": version, "test_accuracy": 0.9 + version / 100} for version in (1, 2, 1)]
    until(lambda: len(promotions(client, since)) >= len(expected), 20)
    assert promotions(client, since) == expected


# Concurrency limits


@pytest.fixture
def shared_server(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process treat the session's embedded server as a shared one."""
    monkeypatch.setattr(prefect_server, "_embedded_urls", set())


class Holder:
    """A flow run in its own thread. It stays in a block until `leave` is set."""

    def __init__(self, name: str) -> None:
        self.arrived, self.entered, self.leave = threading.Event(), threading.Event(), threading.Event()

        @flow(name="test: one at a time")
        def hold() -> None:
            self.arrived.set()
            with one_at_a_time(name):
                self.entered.set()
                assert self.leave.wait(60)

        # Prefect keeps its settings, with the server's address, in context variables.
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(hold,), daemon=True)
        self.thread.start()


@contextmanager
def holders(*names: str) -> Iterator[list[Holder]]:
    """Start flow runs. The first one is in its block, and the others try to enter theirs."""
    started: list[Holder] = []
    try:
        for name in names:
            started.append(Holder(name))
            assert started[-1].arrived.wait(30)
            assert started[0].entered.wait(30)
        yield started
    finally:
        for holder in started:
            holder.leave.set()
        for holder in started:
            holder.thread.join(30)


def wait_is_shown() -> bool:
    return ProgressBoard().read().get("stage") == "wait"


@pytest.fixture
def silent_wait(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the time until a wait is shown, and clear the board. Returns the time in seconds."""
    ProgressBoard().post("test", "Testing")
    monkeypatch.setattr(concurrency, "_SILENT_WAIT_SECONDS", 1.5)
    return 1.5


@pytest.mark.usefixtures("shared_server")
def test_blocks_of_the_same_name_do_not_overlap() -> None:
    with holders("test overlap", "test overlap") as (_, second):
        assert not second.entered.wait(2)


@pytest.mark.usefixtures("shared_server")
def test_block_starts_when_the_one_before_it_ends() -> None:
    with holders("test succession", "test succession") as (first, second):
        first.leave.set()
        assert second.entered.wait(20)


@pytest.mark.usefixtures("shared_server")
def test_blocks_of_different_names_overlap() -> None:
    with holders("test one", "test another") as (_, second):
        assert second.entered.wait(10)


@pytest.mark.usefixtures("shared_server")
def test_long_wait_is_shown(silent_wait: float) -> None:
    with holders("test waiting", "test waiting"):
        started = time.monotonic()
        assert until(wait_is_shown, 15)
        assert time.monotonic() - started > 0.8 * silent_wait
        assert "test waiting" in ProgressBoard().read()["text"]


@pytest.mark.usefixtures("shared_server")
def test_run_that_need_not_wait_shows_no_wait(silent_wait: float) -> None:
    with holders("test no waiting"):
        time.sleep(2 * silent_wait)
        assert not wait_is_shown()


def test_run_with_an_embedded_server_does_not_wait(running_services: None) -> None:
    with holders("test alone", "test alone") as (_, second):
        assert second.entered.wait(10)
