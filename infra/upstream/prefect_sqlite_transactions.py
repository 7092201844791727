"""Start every SQLite transaction of Prefect's server as a writer.

Changes:   `AioSqliteConfiguration.begin_transaction` in Prefect 3.8.
Why:       Prefect starts most transactions as readers. If another transaction has written since, SQLite refuses their
           first write at once and ignores the busy timeout. The server then answers 503, and the client retries two
           seconds later.
Gain:      a bug fix: no 503 and no two-second pauses while several steps report at once.
Upstream:  PrefectHQ/prefect 23051 and 10956 describe it for single endpoints. See "BEGIN IMMEDIATE" in
           https://www.sqlite.org/lang_transaction.html.
Remove:    when Prefect begins transactions that write with BEGIN IMMEDIATE.
If gone:   the test fails. The server starts and logs one line.
Test:      tests/unit/infra/orchestration/test_server.py
"""

import logging
from typing import Any

TARGETS = ("prefect.server.database.configurations:AioSqliteConfiguration.begin_transaction",)
"""The private name that this patch needs."""

_log = logging.getLogger(__name__)


def begin_transactions_as_writers() -> None:
    """Make every transaction wait at its start for transactions that write."""
    try:
        from prefect.server.database.configurations import AioSqliteConfiguration

        begin = AioSqliteConfiguration.begin_transaction
    except (ImportError, AttributeError) as error:
        _log.warning("Prefect's server may answer 503 when its database is busy: %s", error)
        return

    def begin_as_writer(self: Any, session: Any, with_for_update: bool = True) -> Any:  # noqa: ARG001
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_as_writer  # type: ignore[method-assign]
