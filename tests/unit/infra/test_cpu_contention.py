"""Whether a thread can tell that others want its CPU."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.cpu_contention import CpuContention, yield_cpu

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells, and has SCHED_IDLE")


def work(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_thread_beside_another_on_one_cpu_has_waited() -> None:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            contention = CpuContention()
            work(0.5)
            assert contention.share_waited() > 0.2
        finally:
            other.kill()
            other.wait()
    finally:
        os.sched_setaffinity(0, cpus)


def test_time_asleep_is_not_waited_for_a_cpu() -> None:
    contention = CpuContention()
    work(0.05)
    time.sleep(1.5)
    assert contention.share_waited() < 0.95  # 0.97 of 1.55 seconds, had it counted


def test_nothing_is_known_where_the_kernel_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.cpu_contention._SCHEDSTAT", tmp_path / "none")
    contention = CpuContention()
    work(0.01)
    assert contention.share_waited() == 1.0


def test_thread_that_yields_leaves_the_others_as_they_are() -> None:
    policies = []
    thread = threading.Thread(target=lambda: (yield_cpu(), policies.append(os.sched_getscheduler(0))))
    thread.start()
    thread.join()
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
