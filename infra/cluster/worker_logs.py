"""Forward workers' log lines to the progress board, from which they reach the flow run's log.

Our own packages are forwarded from INFO up, and others from WARNING up. The rate per process is limited, so that a
thousand shards a second don't flood Prefect's database. The line after a gap says how many lines were dropped.
"""

import logging
import time
from contextlib import suppress
from typing import Any

from infra.cluster.progress_board import LoggedLine, ProgressBoard
from infra.packages import PACKAGES

_LINES_PER_SECOND = 5
_BURST_LINES = 20
_LINE_CHARACTERS = 2_000
"""Length at which a line is cut."""
_BOARD_TIMEOUT_SECONDS = 5.0


def forward_logs(source: str) -> "BoardHandler":
    """Forward what this process logs from now on to the flow run's log.

    Args:
        source: start of each line, such as `rank 0`. You can change it later through the handler's `source`.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, BoardHandler)]:
        root.removeHandler(handler)  # from an earlier use of this process
    handler = BoardHandler(source)
    root.addHandler(handler)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    return handler


class BoardHandler(logging.Handler):
    """Posts log records to the progress board, at a limited rate."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self._allowance = float(_BURST_LINES)
        self._updated = time.monotonic()
        self._dropped = 0
        self._last: Any = None
        """Reference that is ready once the board has the last line, and all lines before it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Forward a record if its level is high enough, or count it as dropped if the rate is too high."""
        if record.levelno < logging.WARNING and record.name.partition(".")[0] not in PACKAGES:
            return
        now = time.monotonic()
        self._allowance = min(_BURST_LINES, self._allowance + (now - self._updated) * _LINES_PER_SECOND)
        self._updated = now
        if self._allowance < 1:
            self._dropped += 1
            return
        self._allowance -= 1
        with suppress(Exception):  # a lost log line must not fail the run, nor one whose arguments don't fit
            text = self.format(record)[:_LINE_CHARACTERS]
            if self._dropped:
                text += f" ({self._dropped:,} lines before this one were dropped)"
            self._last = ProgressBoard().log(LoggedLine(record.levelno, self.source, text, record.created))
            self._dropped = 0

    def await_board(self) -> None:
        """Wait until the board has all forwarded lines. A process that is killed before that loses them."""
        last, self._last = self._last, None
        if last is not None:
            with suppress(Exception):  # the work doesn't need the board
                import ray

                ray.wait([last], timeout=_BOARD_TIMEOUT_SECONDS)
