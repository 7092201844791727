"""Start, watch and stop a child process."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_GRACE_SECONDS = 10


@dataclass
class ChildProcess:
    """A process in its own session. It can be restarted. Its output goes to a log file."""

    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    descriptors: Sequence[int] = ()
    """File descriptors that the process inherits."""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """Process id, or None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process. Ctrl-C in the terminal doesn't reach it."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                pass_fds=self.descriptors,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Return whether the process has ended, or was never started."""
        return self._process is None or self._process.poll() is not None

    def stop(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Terminate the process, and kill it if it doesn't end in time."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            self._process.wait()


def parent_is_gone(parent: int) -> bool:
    """Return whether the process that started this one has ended.

    Args:
        parent: process id of the parent.
    """
    return os.getppid() != parent
