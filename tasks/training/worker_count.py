"""How many training workers, and on what."""

import re
from dataclasses import dataclass

from infra.errors import RequestError


@dataclass(frozen=True)
class WorkerRange:
    """Between `fewest` and `most` training workers; the same number twice where it is fixed."""

    fewest: int
    most: int

    def __str__(self) -> str:
        return str(self.fewest) if self.fewest == self.most else f"{self.fewest}:{self.most}"


def choose_workers(requested: str, *, cpus: int, gpus: int, gpus_by_now: int | None = None) -> WorkerRange:
    """Turn what was asked for into numbers that the machine or cluster can hold.

    Args:
        requested: a number, a range `MIN:MAX`, or `auto`: one worker a GPU where there are GPUs, else two on CPUs.
        cpus: CPUs there are, or can be; each worker has one.
        gpus: GPUs there are, or can be; each worker has one where there are enough for all.
        gpus_by_now: GPUs there are, of those; `auto` has a cluster grow to no more than one.

    Raises:
        RequestError: it is neither, or more than there are CPUs.
    """
    if requested == "auto":
        count = (gpus if gpus_by_now is None else gpus_by_now) or min(1, gpus) or min(2, cpus)
        if not count:
            raise RequestError("--workers: there is neither a CPU nor a GPU to train on.")
        return WorkerRange(count, count)
    match = re.fullmatch(r"(-?\d+)(?::(-?\d+))?", requested)
    if match is None:
        raise RequestError(f"--workers: {requested!r} is neither a number, nor MIN:MAX, nor auto.")
    fewest = int(match[1])
    most = int(match[2]) if match[2] else fewest
    if fewest < 1:
        raise RequestError(f"--workers: {fewest} workers can't train; ask for at least 1.")
    if most < fewest:
        raise RequestError(f"--workers: the range {requested} ends before it begins.")
    room = max(cpus, gpus)
    if fewest > room:
        way_out = f"Ask for {room} or fewer" if room else "Wait until its nodes have joined (`ray status` lists them)"
        raise RequestError(
            f"--workers: {fewest} workers need {fewest} CPUs or GPUs, but there are {cpus} CPUs and {gpus} GPUs. "
            f"{way_out}, or connect to a larger cluster with FMNIST_RAY_ADDRESS; of one that grows when work waits for "
            "it, FMNIST_RAY_MAX_CPUS and FMNIST_RAY_MAX_GPUS tell how far."
        )
    return WorkerRange(fewest, most)
