"""Runs that must not go on at once wait for each other, by a limit that Prefect's server keeps."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE_SECONDS = 3
"""Before the run says that it waits."""
_LEASE_SECONDS = 60
"""A run whose process is gone holds up the next one so long; the least that Prefect allows."""


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Wait until no other flow run is in a block of this name, and keep others out until the block ends.

    Where the server was started for this run alone, there is nobody to wait for. Nothing goes wrong if two do go on at
    once, by the store's conditional writes; they would only do twice what one does.

    Args:
        name: what is done in the block, in words; it is the name of the limit, too.
    """
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency

    from infra.cluster.progress_board import ProgressBoard
    from infra.orchestration.server import is_for_this_run_alone

    if is_for_this_run_alone():
        yield
        return
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, limit=1)
    waiting = threading.Timer(_PATIENCE_SECONDS, ProgressBoard().post, ("wait", f"Waiting for another run: {name}"))
    waiting.start()
    try:
        slot = concurrency(name, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False)
        with slot:
            waiting.cancel()
            yield
    finally:
        waiting.cancel()
