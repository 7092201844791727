"""The progress line on the terminal. It shows the progress board, refreshed twice a second."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

_FIRST_ENTRY = {"stage": "start", "text": "Starting Ray and Prefect", "share": None}
_SECONDS_BETWEEN_LINES = 5
"""Minimum time between lines in a file or pipe, where a line can't be rewritten."""


class ProgressLine:
    """Shows the current progress, and records when each stage started."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._entry: dict[str, Any] = _FIRST_ENTRY
        self._printed: tuple[float, tuple[str, int | None]] = (0.0, ("start", None))
        self._spinner = Spinner("dots")
        self.stages = [("start", time.monotonic())]
        """Name and start time of each stage, in order."""
        self.ended_at: float | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the training run in progress, if any."""
        run_id: str | None = self._entry.get("run_id")
        return run_id

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the board in a background thread while the block runs."""
        ended = threading.Event()
        thread = threading.Thread(target=self._read, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ended_at = time.monotonic()
            ended.set()
            thread.join()

    def _read(self, ended: threading.Event) -> None:
        from infra.cluster.progress_board import ProgressBoard

        # A run doesn't need its board. Without it, the line only stops moving.
        with contextlib.suppress(Exception):
            board = ProgressBoard()
            while not ended.wait(0.5):
                entry = board.read()
                if entry and entry != self._entry:
                    self._show(entry)

    def _show(self, entry: dict[str, Any]) -> None:
        now = time.monotonic()
        if entry["stage"] != self._entry["stage"]:
            self.stages.append((entry["stage"], now))
        self._entry = entry
        if self._console.is_terminal:
            return
        place = (entry["stage"], entry.get("epoch"))
        if place != self._printed[1] or now - self._printed[0] >= _SECONDS_BETWEEN_LINES:
            self._printed = (now, place)
            self._console.print(entry["text"], highlight=False, soft_wrap=True)

    def __rich__(self) -> Table:
        text, share = self._entry["text"], self._entry["share"]
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=1, completed=share, width=24) if share is not None else ""
        elapsed = f"[dim]{time.monotonic() - self.stages[-1][1]:.0f} s[/dim]"
        line.add_row(self._spinner, text, bar, elapsed)
        return line


@contextmanager
def progress_line(console: Console) -> Iterator[ProgressLine]:
    """Show progress while the block runs: one live line on a terminal, or a line every few seconds elsewhere."""
    line = ProgressLine(console)
    if not console.is_terminal:
        console.print(_FIRST_ENTRY["text"], highlight=False, soft_wrap=True)
    with Live(line, console=console, refresh_per_second=8, transient=True) if console.is_terminal else nullcontext():
        yield line
