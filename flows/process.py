"""The process of a deployment's run: Prefect's engine, in a process that has begun before what takes its time.

It joins Ray first of all, and has a process there import what the flow's first step in the cluster needs, while this
one imports Prefect and the flow. Not in a thread: where two import at once, they meet modules that are half imported.
"""

import importlib
import json
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flows.cli.services import prepare_environment
from infra.importing import keep_pandas_out, uncollected
from infra.orchestration.worker import PREFECT_SETTINGS

FIRST_STEP = {
    "classify": ["flows.classify"],
    "train": ["flows.train", "infra.cluster.trainer"],
    "train-and-classify": ["flows.train_and_classify", "infra.cluster.trainer"],
}
"""By flow, what its first step in the cluster imports."""


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    os.setsid()  # as Prefect has it: Ctrl-C is for the worker, which ends its runs in its own time
    os.environ.update(json.loads(os.environ.pop(PREFECT_SETTINGS, "{}")))
    prepare_environment(console=True)
    with ahead("joining Ray"), uncollected():
        _join_ray(os.environ.get("PREFECT__FLOW_NAME", ""))
    with ahead("importing the flow"), uncollected():
        for module in ("prefect.flow_engine", "flows.deployed"):
            importlib.import_module(module)
    keep_pandas_out()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


@contextmanager
def ahead(what: str) -> Iterator[None]:
    """Begin something that is done anew if it fails: by Prefect or the flow, which tell it in the run's log."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (whatever it is, it is met again where it can be told)
        print(f"Ahead of the run, {what} failed: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201


def _join_ray(flow: str) -> None:
    from infra.settings import load_settings

    settings = load_settings()
    if flow not in FIRST_STEP or not settings.ray_address:
        return
    from infra.cluster.connection import join_ahead
    from infra.cluster.progress_board import ProgressBoard
    from infra.cluster.ray_ahead import import_ahead

    join_ahead(settings)
    ProgressBoard()  # first, or it would have the process that imports
    import_ahead(FIRST_STEP[flow])


if __name__ == "__main__":
    main()
