"""What workers log, handed on to the board, and by it to the flow run's log.

Of our own packages from INFO up, of all others from WARNING up. A process hands on so many lines a second, and then
says how many it did not: a thousand shards a second are no reason to flood Prefect's database.
"""

import logging
import time
from contextlib import suppress
from typing import Any

from infra.cluster.progress_board import LoggedLine, ProgressBoard

_OURS = ("flows", "tasks", "fmnist_model", "infra")
_LINES_A_SECOND = 5
_BURST = 20
_LONGEST = 2_000
"""Characters of a line."""
_BOARD_SECONDS = 5.0


def forward_logs(where: str) -> "BoardHandler":
    """Have what this process logs from now on appear in the flow run's log.

    Args:
        where: what each line begins with, such as `rank 0`; the handler's `where` may be set anew.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, BoardHandler)]:
        root.removeHandler(handler)  # of an earlier use of this process
    handler = BoardHandler(where)
    root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    return handler


class BoardHandler(logging.Handler):
    """Posts records to the progress board, at a bounded rate."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self._allowance = float(_BURST)
        self._looked = time.monotonic()
        self._dropped = 0
        self._last: Any = None
        """What Ray answers when the board has the last line, and so those before it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on, or count it, or leave it: third parties have to say something of weight."""
        if record.levelno < logging.WARNING and record.name.partition(".")[0] not in _OURS:
            return
        now = time.monotonic()
        self._allowance = min(_BURST, self._allowance + (now - self._looked) * _LINES_A_SECOND)
        self._looked = now
        if self._allowance < 1:
            self._dropped += 1
            return
        self._allowance -= 1
        with suppress(Exception):  # a log line is not worth a run, be it that its arguments don't fit
            text = self.format(record)[:_LONGEST]
            if self._dropped:
                text += f" (and {self._dropped:,} lines before it that are not shown)"
            self._last = ProgressBoard().log(LoggedLine(record.levelno, self.where, text, record.created))
            self._dropped = 0

    def await_board(self) -> None:
        """Wait until the board has what was handed on: a process that is killed before takes it along."""
        last, self._last = self._last, None
        if last is not None:
            with suppress(Exception):  # without the board, the work goes on
                import ray

                ray.wait([last], timeout=_BOARD_SECONDS)
