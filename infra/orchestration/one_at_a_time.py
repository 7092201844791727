"""Make flow runs of the same kind wait for each other, through a concurrency limit of Prefect's server."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SILENT_WAIT_SECONDS = 3
"""Time before a run reports that it waits."""
_LEASE_SECONDS = 60
"""Time for which a run whose process was killed blocks the next one. 60 s is the minimum that Prefect allows."""


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Wait until no other flow run is in a block of this name, and keep others out while the block runs.

    With an embedded server, which serves only this run, there is nothing to wait for. Two runs at once would still be
    correct, because the store's writes are conditional. They would only do the same work twice.

    Args:
        name: description of the block's work, which is also the name of the concurrency limit.
    """
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency

    from infra.cluster.progress_board import ProgressBoard
    from infra.orchestration.server import uses_embedded_server

    if uses_embedded_server():
        yield
        return
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, limit=1)
    report = threading.Timer(_SILENT_WAIT_SECONDS, ProgressBoard().post, ("wait", f"Waiting for another run: {name}"))
    report.start()
    try:
        slot = concurrency(name, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False)
        with slot:
            report.cancel()
            yield
    finally:
        report.cancel()
