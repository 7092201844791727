"""Map shards over real Ray actors."""

import os
import time
from collections.abc import Callable
from operator import neg
from pathlib import Path

import psutil
import pytest
import ray

from infra.cluster.actor_pool import map_shards
from infra.cluster.placement import this_node
from infra.cluster.resources import ActorResources
from infra.errors import JobError, RequestError

pytestmark = pytest.mark.usefixtures("running_services")


def actor_that(do: Callable[[Path, int], int]) -> type:
    """Make an actor class that writes its process id into a folder, and calls a function for each shard."""

    class Actor:
        def __init__(self, folder: Path) -> None:
            self._folder = folder
            (folder / f"{os.getpid()}.pid").touch()

        def ready(self) -> str:
            return this_node()

        def work(self, shard: int) -> int:
            return do(self._folder, shard)

    return Actor


def results_of(do: Callable[[Path, int], int], folder: Path, shards: int, **resources: int) -> list[int]:
    with map_shards(actor_that(do), (folder,), range(shards), ActorResources(**resources), what="The test") as results:
        return list(results)


def processes(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pid")]


def remaining(folder: Path) -> list[int]:
    """Wait up to 20 s for the actors' processes to end, and return those that have not."""
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in processes(folder) if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive


def test_each_shard_is_done_once(tmp_path: Path) -> None:
    assert sorted(results_of(lambda _, shard: shard, tmp_path, 20)) == list(range(20))


def test_pool_starts_at_most_one_actor_per_shard(tmp_path: Path) -> None:
    results_of(lambda _, shard: shard, tmp_path, 1)
    assert len(processes(tmp_path)) == 1


def test_pool_starts_at_most_max_workers_actors(tmp_path: Path) -> None:
    results_of(lambda _, shard: shard, tmp_path, 4, max_workers=1)
    assert len(processes(tmp_path)) == 1


def test_finished_pool_leaves_no_actor(tmp_path: Path) -> None:
    results_of(lambda _, shard: shard, tmp_path, 4)
    assert remaining(tmp_path) == []


def test_error_of_the_caller_leaves_no_actor(tmp_path: Path) -> None:
    actor = actor_that(lambda _, shard: shard)
    with (
        pytest.raises(KeyError),
        map_shards(actor, (tmp_path,), range(4), ActorResources(), what="The test") as results,
    ):
        raise KeyError(next(results))
    assert remaining(tmp_path) == []


def test_shard_of_a_killed_actor_is_done_by_another_one(tmp_path: Path) -> None:
    def die_once(folder: Path, shard: int) -> int:
        if shard == 3 and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(1)
        return shard

    assert sorted(results_of(die_once, tmp_path, 6)) == list(range(6))


def test_shard_that_kills_every_actor_fails_the_job(tmp_path: Path) -> None:
    def die(_: Path, shard: int) -> int:
        os._exit(1)

    with pytest.raises(JobError) as error:
        results_of(die, tmp_path, 1)
    assert "The test" in str(error.value)


def test_shard_that_kills_two_actors_is_handed_out_as_a_suspect(tmp_path: Path) -> None:
    def die_of_one(_: Path, shard: int) -> int:
        if shard == 1:
            os._exit(1)
        return shard

    actor = actor_that(die_of_one)
    with map_shards(actor, (tmp_path,), range(3), ActorResources(), what="The test", as_suspect=neg) as results:
        assert sorted(results) == [-1, 0, 2]


def test_shard_of_an_actor_that_ray_ended_to_free_memory_is_done_by_another_one(tmp_path: Path) -> None:
    def run_out_of_memory_once(folder: Path, shard: int) -> int:
        if not (folder / "died").exists():
            (folder / "died").touch()
            raise ray.exceptions.OutOfMemoryError("The node has no memory left.")
        return shard

    assert results_of(run_out_of_memory_once, tmp_path, 1) == [0]
    assert len(processes(tmp_path)) == 2


def test_shard_whose_actor_was_killed_once_is_no_suspect(tmp_path: Path) -> None:
    def die_once(folder: Path, shard: int) -> int:
        if not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(1)
        return shard

    actor = actor_that(die_once)
    with map_shards(actor, (tmp_path,), [5], ActorResources(), what="The test", as_suspect=neg) as results:
        assert list(results) == [5]


@pytest.mark.parametrize("end", ["death", "error"])
def test_failed_shard_is_named(tmp_path: Path, end: str) -> None:
    def fail(_: Path, shard: int) -> int:
        if shard == 2 and end == "death":
            os._exit(1)
        if shard == 2:
            error = JobError("no answer")
            error.add_note("It was reading s3://bucket/a.png.")
            raise error
        return shard

    with (
        pytest.raises(JobError) as failure,
        map_shards(
            actor_that(fail),
            (tmp_path,),
            range(3),
            ActorResources(),
            what="The test",
            describe=lambda shard: f"shard {shard} of batch 7",
        ) as results,
    ):
        list(results)
    assert "shard 2 of batch 7" in str(failure.value)
    expected = "4 workers died" if end == "death" else "s3://bucket/a.png"
    assert str(failure.value).count(expected) == 1


def test_error_of_a_shard_is_part_of_the_jobs_error(tmp_path: Path) -> None:
    def fail(_: Path, shard: int) -> int:
        raise RequestError("s3://bucket does not answer.")

    with pytest.raises(JobError) as error:
        results_of(fail, tmp_path, 3)
    assert "The test" in str(error.value)
    assert "s3://bucket does not answer." in str(error.value)


def test_error_without_a_message_fails_the_job(tmp_path: Path) -> None:
    def fail(_: Path, shard: int) -> int:
        raise AssertionError

    with pytest.raises(JobError) as error:
        results_of(fail, tmp_path, 1)
    assert "The test" in str(error.value)


def test_timeout_of_a_shard_fails_the_job(tmp_path: Path) -> None:
    def time_out(_: Path, shard: int) -> int:
        raise TimeoutError("the disk does not answer")

    with pytest.raises(JobError, match="the disk does not answer"):
        results_of(time_out, tmp_path, 1)


def test_error_of_an_actors_constructor_is_part_of_the_jobs_error(tmp_path: Path) -> None:
    class Broken:
        def __init__(self) -> None:
            raise RequestError("there are no weights")

        def ready(self) -> None:
            pass

    with (
        pytest.raises(JobError, match="there are no weights"),
        map_shards(Broken, (), range(2), ActorResources(), what="The test"),
    ):
        pass
