"""What a run shows in Prefect's own UI beside its logs."""

import logging
from typing import Any


def show_markdown(key: str, markdown: str, description: str) -> None:
    """Show markdown as an artifact of this run; nothing happens outside of a run.

    One that can't be shown is no reason to fail: the run's log says why.

    Args:
        key: lowercase letters, digits and dashes; Prefect lists the artifacts of all runs by it.
        markdown: some 300 KB at most.
        description: a sentence or two, plain text.
    """
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext, TaskRunContext

    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    try:
        create_markdown_artifact(markdown, key=key, description=description)
    except Exception as error:  # noqa: BLE001 (whatever it is, the work is done)
        run_log().warning("The artifact %s can't be shown: %s: %s", key, type(error).__name__, error)


def run_log() -> Any:
    """The log of this task or flow run, or one of this process outside of a run."""
    from prefect import get_run_logger
    from prefect.exceptions import MissingContextError

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)
