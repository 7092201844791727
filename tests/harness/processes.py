"""Call a function in many processes at the same moment."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

# Forked from a server that has imported their modules. That saves each process a second.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__, "boto3", "deltalake", "pyarrow.dataset", "pyarrow.parquet"])


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in many processes at the same moment. Its first argument is the number of the process."""
    barrier, results = _PROCESSES.Barrier(count), _PROCESSES.Queue()
    children = [
        _PROCESSES.Process(target=_child, args=(dict(os.environ), barrier, results, function, number, *arguments))
        for number in range(count)
    ]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=200) for _ in children]
    for child in children:
        child.join()
    failures = [failure for failure, _ in outcomes if failure]
    assert not failures, failures[0]
    return [result for _, result in outcomes]


def _child(environment: dict[str, str], barrier: Any, results: Any, function: Any, *arguments: Any) -> None:
    os.environ.update(environment)
    try:
        barrier.wait(timeout=150)
        results.put((None, function(*arguments)))
    except BaseException:  # noqa: BLE001 (the parent raises it again)
        results.put((traceback.format_exc(), None))
