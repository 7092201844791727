"""Measure how long each stage of a run takes."""

import time

from flows.cli.progress_line import ProgressLine
from flows.cli.services import StartUp


class Timeline:
    """Seconds by stage, as the progress line saw the stages start. It looks twice a second."""

    def __init__(self, line: ProgressLine, started: StartUp) -> None:
        self._line, self._started = line, started

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, in order. `ray` and `prefect` are parts of `start`, and overlap."""
        ends = [started for _, started in self._line.stages[1:]] + [self._line.ended_at or time.monotonic()]
        stages: dict[str, float] = {}
        for (stage, started), end in zip(self._line.stages, ends, strict=True):
            stages[stage] = stages.get(stage, 0.0) + end - started
        parts = {"ray": self._started.ray_seconds, "prefect": self._started.prefect_seconds}
        return {name: round(seconds, 2) for name, seconds in (parts | stages).items()}
