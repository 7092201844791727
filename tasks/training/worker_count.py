"""Choose the number of training workers."""

import re
from dataclasses import dataclass

from infra.errors import RequestError

_WAIT = "Wait until its nodes have joined (`ray status` lists them)"


@dataclass(frozen=True)
class WorkerRange:
    """A range of worker counts. Both ends are equal if the number is fixed."""

    fewest: int
    most: int

    def __str__(self) -> str:
        return str(self.fewest) if self.fewest == self.most else f"{self.fewest}:{self.most}"


def choose_workers(requested: str, *, cpus: int, gpus: int, gpus_by_now: int | None = None) -> WorkerRange:
    """Turn the requested number of workers into a range that fits the machine or cluster.

    Args:
        requested: a number, a range `MIN:MAX`, or `auto`: one worker per GPU, or two on CPUs without GPUs.
        cpus: CPUs that the cluster has or can grow to. Each worker takes one.
        gpus: GPUs that the cluster has or can grow to. Each worker takes one if there are enough for all.
        gpus_by_now: GPUs that the cluster has now. With `auto`, a cluster without GPUs grows to one at most.

    Raises:
        RequestError: `requested` isn't valid, or the workers don't fit.
    """
    if requested == "auto":
        count = (gpus if gpus_by_now is None else gpus_by_now) or min(1, gpus) or min(2, cpus)
        if not count:
            raise RequestError(f"--workers: the cluster has no CPU and no GPU to train on. {_WAIT}.")
        return WorkerRange(count, count)
    match = re.fullmatch(r"(-?\d+)(?::(-?\d+))?", requested)
    if match is None:
        raise RequestError(f"--workers: {requested!r} is invalid. Use a number, a range MIN:MAX, or auto.")
    fewest = int(match[1])
    most = int(match[2]) if match[2] else fewest
    if fewest < 1:
        raise RequestError(f"--workers: {fewest} workers can't train. Use at least 1.")
    if most < fewest:
        raise RequestError(f"--workers: the range {requested} ends before it starts. Put the smaller number first.")
    most_possible = max(cpus, gpus)
    if fewest > most_possible:
        advice = f"Use at most {most_possible} workers" if most_possible else _WAIT
        raise RequestError(
            f"--workers: {fewest} workers need {fewest} CPUs or GPUs, but there are {cpus} CPUs and {gpus} GPUs. "
            f"{advice}, or connect to a larger cluster with FMNIST_RAY_ADDRESS. If the cluster grows on demand, set "
            "FMNIST_RAY_MAX_CPUS and FMNIST_RAY_MAX_GPUS to its maximum size."
        )
    return WorkerRange(fewest, most)
