"""Show artifacts and log lines on a run's page in the Prefect UI."""

import logging
from typing import Any


def show_markdown(key: str, markdown: str, description: str) -> None:
    """Show markdown as an artifact of the current run. Outside of a run, do nothing.

    An error doesn't fail the run. It is logged instead.

    Args:
        key: lowercase letters, digits and dashes. Prefect groups the artifacts of all runs by key.
        markdown: text of at most about 300 KB.
        description: one or two sentences of plain text.
    """
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext, TaskRunContext

    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    try:
        create_markdown_artifact(markdown, key=key, description=description)
    except Exception as error:  # noqa: BLE001 (the work is done, so no error in its artifact may fail the run)
        run_log().warning("Can't show the artifact %s: %s: %s", key, type(error).__name__, error)


def run_log() -> Any:
    """Return the logger of the current task or flow run, or a standard logger outside of a run."""
    from prefect import get_run_logger
    from prefect.exceptions import MissingContextError

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)
