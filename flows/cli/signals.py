"""Turn the signals that end a command into an exception, so that it ends as after Ctrl-C."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Ending:
    """The signal that asked this command to end, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first SIGTERM or SIGHUP while the block runs, and ignore later ones.

        A service manager sends both, one after the other. A signal that is ignored, as under `nohup`, stays ignored.
        """
        self.signal = None
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        for number, handler in before.items():
            if handler == signal.SIG_DFL:
                signal.signal(number, self._end)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """Exit code of a process that the signal ended: 143 for SIGTERM, 129 for SIGHUP, and 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    def __str__(self) -> str:
        return "Interrupted" if self.signal is None else f"Interrupted by {self.signal.name}"


ending = Ending()
"""How this process ends."""
