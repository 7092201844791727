"""Forward workers' log lines to the board, at a limited rate and without ever failing the work."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from infra.cluster import worker_logs
from infra.cluster.progress_board import LoggedLine, ProgressBoard
from infra.cluster.worker_logs import BoardHandler, forward_logs
from infra.packages import PACKAGES

OURS = logging.getLogger("tasks.training.train")
THIRD_PARTY = logging.getLogger("urllib3.connectionpool")
LINES_KEPT = 500


@pytest.fixture
def board(running_services: None) -> ProgressBoard:
    """Return the session's board, without the lines of earlier tests."""
    board = ProgressBoard()
    board.take()
    return board


@pytest.fixture
def logs(board: ProgressBoard) -> Iterator[BoardHandler]:
    """Forward what this process logs while a test runs."""
    loggers = [logging.getLogger(name) for name in PACKAGES]
    levels = [logger.level for logger in loggers]
    handler = forward_logs("rank 0")
    yield handler
    logging.getLogger().removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def taken(board: ProgressBoard) -> list[LoggedLine]:
    return board.take()[1]


@pytest.mark.usefixtures("logs")
def test_our_packages_are_forwarded_from_info_up(board: ProgressBoard):
    for name in ("flows.train", "tasks.training.train", "fmnist_model.training.loop", "infra.cluster.connection"):
        logging.getLogger(name).debug("debug of %s", name)
        logging.getLogger(name).info("info of %s", name)
    assert taken(board) == [
        LoggedLine(logging.INFO, "rank 0", f"info of {name}")
        for name in ("flows.train", "tasks.training.train", "fmnist_model.training.loop", "infra.cluster.connection")
    ]


@pytest.mark.usefixtures("logs")
def test_other_packages_are_forwarded_from_warning_up(board: ProgressBoard, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(THIRD_PARTY, "level", logging.DEBUG)
    THIRD_PARTY.info("a connection")
    THIRD_PARTY.warning("no connection")
    assert taken(board) == [LoggedLine(logging.WARNING, "rank 0", "no connection")]


@pytest.mark.usefixtures("logs")
def test_package_whose_name_starts_like_ours_is_not_ours(board: ProgressBoard, monkeypatch: pytest.MonkeyPatch):
    almost = logging.getLogger("tasks_of_others")
    monkeypatch.setattr(almost, "level", logging.DEBUG)
    almost.info("a task")
    assert taken(board) == []


@pytest.mark.usefixtures("logs")
def test_burst_is_limited(board: ProgressBoard):
    started = time.monotonic()
    for number in range(1000):
        OURS.info("line %d", number)
    allowed = worker_logs._BURST_LINES + worker_logs._LINES_PER_SECOND * (time.monotonic() - started)
    assert worker_logs._BURST_LINES <= len(taken(board)) <= allowed


@pytest.mark.usefixtures("logs")
def test_first_line_after_a_burst_counts_the_dropped_lines(board: ProgressBoard):
    for number in range(1000):
        OURS.info("line %d", number)
    time.sleep(2 / worker_logs._LINES_PER_SECOND)
    OURS.info("the end")
    *burst, end = [line.text for line in taken(board)]
    dropped = [int(found) for text in [*burst, end] for found in re.findall(r"\((\d+) lines", text)]
    assert re.match(r"the end \(\d+ lines", end)
    assert sum(dropped) == 1000 - len(burst)


@pytest.mark.usefixtures("logs")
def test_no_line_at_a_moderate_rate_is_dropped(board: ProgressBoard, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_logs, "_LINES_PER_SECOND", 100)
    for number in range(40):
        OURS.info("line %d", number)
        time.sleep(0.02)
    assert [line.text for line in taken(board)] == [f"line {number}" for number in range(40)]


@pytest.mark.usefixtures("logs")
def test_long_line_is_cut(board: ProgressBoard):
    OURS.info("x" * 10_000)
    assert [line.text for line in taken(board)] == ["x" * 2_000]


@pytest.mark.usefixtures("logs")
def test_error_is_forwarded_with_its_traceback(board: ProgressBoard):
    try:
        raise KeyError("epoch")
    except KeyError:
        OURS.exception("no checkpoint")
    [line] = taken(board)
    assert line.text.startswith("no checkpoint\nTraceback")
    assert line.text.endswith("KeyError: 'epoch'")


def test_line_that_cannot_be_formatted_is_ignored(board: ProgressBoard, logs: BoardHandler):
    # Goes to this handler only, because pytest's own would raise.
    logs.handle(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "%d images", "args": ("many",)}))
    OURS.info("the next")
    assert [line.text for line in taken(board)] == ["the next"]


@pytest.mark.usefixtures("logs")
def test_reused_process_forwards_each_line_once(board: ProgressBoard):
    handler = forward_logs("rank 1")
    OURS.info("once")
    logging.getLogger().removeHandler(handler)
    assert taken(board) == [LoggedLine(logging.INFO, "rank 1", "once")]


WITHOUT_RAY = """
import logging
from infra.cluster.worker_logs import forward_logs

logging.basicConfig(format="%(message)s")
forward_logs("rank 0")
for number in range(100):
    logging.getLogger("tasks.training.train").info("line %d", number)
print("done")
"""


def test_process_without_ray_still_logs_to_its_own_output():
    environment = os.environ | {"RAY_ENABLE_AUTO_CONNECT": "0"}
    environment.pop("RAY_ADDRESS", None)
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
    assert ran.stderr.splitlines() == [f"line {number}" for number in range(100)]


# The board


def line(number: int) -> LoggedLine:
    return LoggedLine(logging.INFO, "rank 0", f"line {number}")


def test_full_board_drops_and_counts_the_oldest_lines(board: ProgressBoard):
    for number in range(LINES_KEPT + 7):
        board.log(line(number))
    _, lines, lost = board.take()
    assert lines == [line(number) for number in range(7, LINES_KEPT + 7)]
    assert lost == 7


def test_board_loses_no_line_up_to_its_limit(board: ProgressBoard):
    for number in range(LINES_KEPT):
        board.log(line(number))
    _, lines, lost = board.take()
    assert (len(lines), lost) == (LINES_KEPT, 0)


def test_lines_are_taken_once(board: ProgressBoard):
    for number in range(LINES_KEPT + 1):
        board.log(line(number))
    board.take()
    _, lines, lost = board.take()
    assert (lines, lost) == ([], 0)


def test_entry_stays_on_the_board(board: ProgressBoard):
    board.post("train", "Epoch 1", share=0.5, epoch=1)
    board.take()
    assert board.take()[0] == board.read() == {"stage": "train", "text": "Epoch 1", "share": 0.5, "epoch": 1}
