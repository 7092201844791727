"""What workers log reaches the board: what is worth it, at a bounded rate, and never at the cost of the work."""

import logging
import os
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
    """The session's, without what earlier tests left on it."""
    board = ProgressBoard()
    board.take()
    return board


@pytest.fixture
def logs(board: ProgressBoard) -> Iterator[BoardHandler]:
    """What this process logs is handed on, for the length of a test."""
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
def test_our_packages_are_handed_on_from_info_up(board: ProgressBoard):
    for name in ("flows.train", "tasks.training.train", "fmnist_model.training.loop", "infra.cluster.connection"):
        logging.getLogger(name).debug("debug of %s", name)
        logging.getLogger(name).info("info of %s", name)
    assert taken(board) == [
        LoggedLine(logging.INFO, "rank 0", f"info of {name}")
        for name in ("flows.train", "tasks.training.train", "fmnist_model.training.loop", "infra.cluster.connection")
    ]


def test_what_is_in_the_flow_runs_log_is_not_handed_on_to_it_again(logs: BoardHandler, board: ProgressBoard):
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logs.handle(logging.makeLogRecord({"name": name, "levelno": logging.WARNING, "msg": "handed on before"}))
    assert taken(board) == []


@pytest.mark.usefixtures("logs")
def test_third_parties_are_handed_on_from_warning_up(board: ProgressBoard, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(THIRD_PARTY, "level", logging.DEBUG)
    THIRD_PARTY.info("a connection")
    THIRD_PARTY.warning("no connection")
    assert taken(board) == [LoggedLine(logging.WARNING, "rank 0", "no connection")]


@pytest.mark.usefixtures("logs")
def test_package_that_is_named_almost_like_ours_is_a_third_party(board: ProgressBoard, monkeypatch: pytest.MonkeyPatch):
    almost = logging.getLogger("tasks_of_others")
    monkeypatch.setattr(almost, "level", logging.DEBUG)
    almost.info("a task")
    assert taken(board) == []


@pytest.mark.usefixtures("logs")
def test_burst_hands_on_no_more_than_its_allowance(board: ProgressBoard):
    began = time.monotonic()
    for number in range(1000):
        OURS.info("line %d", number)
    allowed = worker_logs._BURST + worker_logs._LINES_A_SECOND * (time.monotonic() - began)
    handed_on = len(taken(board))
    assert worker_logs._BURST <= handed_on <= allowed


@pytest.mark.usefixtures("logs")
def test_first_line_after_a_burst_says_how_many_are_missing(board: ProgressBoard):
    for number in range(1000):
        OURS.info("line %d", number)
    time.sleep(2 / worker_logs._LINES_A_SECOND)
    OURS.info("the end")
    *burst, end = [line.text for line in taken(board)]
    told = sum(int(text.partition("(and ")[2].partition(" lines")[0]) for text in [*burst, end] if "(and " in text)
    assert end.startswith("the end (and ")
    assert told == 1000 - len(burst)


@pytest.mark.usefixtures("logs")
def test_lines_at_a_moderate_rate_are_all_handed_on(board: ProgressBoard, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_logs, "_LINES_A_SECOND", 100)
    for number in range(40):
        OURS.info("line %d", number)
        time.sleep(0.02)
    assert [line.text for line in taken(board)] == [f"line {number}" for number in range(40)]


@pytest.mark.usefixtures("logs")
def test_long_line_is_cut(board: ProgressBoard):
    OURS.info("x" * 10_000)
    assert [line.text for line in taken(board)] == ["x" * 2_000]


@pytest.mark.usefixtures("logs")
def test_error_is_handed_on_with_its_traceback(board: ProgressBoard):
    try:
        raise KeyError("epoch")
    except KeyError:
        OURS.exception("no checkpoint")
    [line] = taken(board)
    assert line.text.startswith("no checkpoint\nTraceback")
    assert line.text.endswith("KeyError: 'epoch'")


def test_line_that_can_not_be_formatted_is_no_reason_to_fail(board: ProgressBoard, logs: BoardHandler):
    # Handed to the handler alone: pytest's own would raise.
    logs.handle(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "%d images", "args": ("many",)}))
    OURS.info("the next")
    assert [line.text for line in taken(board)] == ["the next"]


@pytest.mark.usefixtures("logs")
def test_second_use_of_a_process_hands_each_line_on_once(board: ProgressBoard):
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


def test_process_without_ray_keeps_its_own_log_and_raises_nothing():
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


def test_board_keeps_the_latest_lines_and_counts_those_it_lost(board: ProgressBoard):
    for number in range(LINES_KEPT + 7):
        board.log(line(number))
    _, lines, lost = board.take()
    assert lines == [line(number) for number in range(7, LINES_KEPT + 7)]
    assert lost == 7


def test_board_loses_none_of_as_many_lines_as_it_keeps(board: ProgressBoard):
    for number in range(LINES_KEPT):
        board.log(line(number))
    _, lines, lost = board.take()
    assert (len(lines), lost) == (LINES_KEPT, 0)


def test_what_was_taken_from_the_board_is_not_there_any_more(board: ProgressBoard):
    for number in range(LINES_KEPT + 1):
        board.log(line(number))
    board.take()
    _, lines, lost = board.take()
    assert (lines, lost) == ([], 0)


def test_entry_stays_on_the_board_when_it_is_taken(board: ProgressBoard):
    board.post("train", "Epoch 1", share=0.5, epoch=1)
    board.take()
    assert board.take()[0] == board.read() == {"stage": "train", "text": "Epoch 1", "share": 0.5, "epoch": 1}
