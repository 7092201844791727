"""Shards are mapped over real Ray actors: each is done, or the job fails and says why; no actor is left."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.cluster.actor_pool import map_shards
from infra.cluster.resources import ActorResources
from infra.errors import JobError, RequestError

pytestmark = pytest.mark.usefixtures("running_services")


def actor_that(do: Callable[[Path, int], int]) -> type:
    """An actor that notes its process in a folder, and does something with a shard."""

    class Actor:
        def __init__(self, folder: Path) -> None:
            self._folder = folder
            (folder / f"{os.getpid()}.pid").touch()

        def ready(self) -> None:
            pass

        def work(self, shard: int) -> int:
            return do(self._folder, shard)

    return Actor


def results_of(do: Callable[[Path, int], int], folder: Path, shards: int, **resources: int) -> list[int]:
    with map_shards(actor_that(do), (folder,), range(shards), ActorResources(**resources), what="The test") as results:
        return list(results)


def processes(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pid")]


def left(folder: Path) -> list[int]:
    """Processes of actors that have not ended within some seconds."""
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in processes(folder) if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive


def test_each_shard_is_done_once(tmp_path: Path) -> None:
    assert sorted(results_of(lambda _, shard: shard, tmp_path, 20)) == list(range(20))


def test_no_more_actors_are_made_than_there_are_shards(tmp_path: Path) -> None:
    results_of(lambda _, shard: shard, tmp_path, 1)
    assert len(processes(tmp_path)) == 1


def test_no_more_actors_are_made_than_were_asked_for(tmp_path: Path) -> None:
    results_of(lambda _, shard: shard, tmp_path, 4, max_workers=1)
    assert len(processes(tmp_path)) == 1


def test_no_actor_is_left_when_all_is_done(tmp_path: Path) -> None:
    results_of(lambda _, shard: shard, tmp_path, 4)
    assert left(tmp_path) == []


def test_no_actor_is_left_when_who_takes_the_results_fails(tmp_path: Path) -> None:
    actor = actor_that(lambda _, shard: shard)
    with (
        pytest.raises(KeyError),
        map_shards(actor, (tmp_path,), range(4), ActorResources(), what="The test") as results,
    ):
        raise KeyError(next(results))
    assert left(tmp_path) == []


def test_shard_whose_actor_dies_is_done_by_its_successor(tmp_path: Path) -> None:
    def die_once(folder: Path, shard: int) -> int:
        if shard == 3 and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(1)
        return shard

    assert sorted(results_of(die_once, tmp_path, 6)) == list(range(6))


def test_shard_whose_actors_all_die_fails_the_job(tmp_path: Path) -> None:
    def die(_: Path, shard: int) -> int:
        os._exit(1)

    with pytest.raises(JobError, match=r"The test failed: .*The finished shards are kept"):
        results_of(die, tmp_path, 1)


def test_shard_that_fails_fails_the_job_by_its_message(tmp_path: Path) -> None:
    def fail(_: Path, shard: int) -> int:
        raise RequestError("s3://bucket does not answer.")

    with pytest.raises(JobError, match=r"^The test failed: s3://bucket does not answer\. The finished shards are kept"):
        results_of(fail, tmp_path, 3)


def test_shard_that_fails_without_a_message_fails_the_job(tmp_path: Path) -> None:
    def fail(_: Path, shard: int) -> int:
        raise AssertionError

    with pytest.raises(JobError, match=r"^The test failed: "):
        results_of(fail, tmp_path, 1)


def test_shard_that_times_out_fails_the_job(tmp_path: Path) -> None:
    def time_out(_: Path, shard: int) -> int:
        raise TimeoutError("the disk does not answer")

    with pytest.raises(JobError, match="the disk does not answer"):
        results_of(time_out, tmp_path, 1)


def test_actor_that_can_not_be_made_fails_the_job_by_its_message(tmp_path: Path) -> None:
    class Unmade:
        def __init__(self) -> None:
            raise RequestError("there are no weights")

        def ready(self) -> None:
            pass

    with (
        pytest.raises(JobError, match="there are no weights"),
        map_shards(Unmade, (), range(2), ActorResources(), what="The test"),
    ):
        pass
