"""The tally of a shard equals a plain count of its rows."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.predictions import Predictions, Rejection
from infra.storage.tables.records import OTHER_REASONS
from tasks.classification.tally import CONFIDENCE_BINS, LEAST_CONFIDENT, ShardTally

Row = tuple[int, float, int | None]
"""Predicted class, confidence and label."""
ROWS = st.tuples(
    st.integers(0, 9), st.floats(0, 1, width=32) | st.sampled_from([0.0, 1.0, 0.5]), st.none() | st.integers(-3, 12)
)


def tally(batches: list[list[Row]]) -> ShardTally:
    found, first = ShardTally(10), 0
    for rows in batches:
        names = [f"{number:03d}" for number in range(first, first + len(rows))]
        found.add_predictions(pa.array(names, pa.string()), *columns(rows))
        first += len(rows)
    return found


def columns(rows: list[Row]) -> tuple[Predictions, pa.Array]:
    classes = np.array([row[0] for row in rows], np.int8)
    confidence = np.array([row[1] for row in rows], np.float32)
    probabilities = np.repeat(confidence[:, None], 10, axis=1)
    return Predictions(classes, confidence, probabilities), pa.array([row[2] for row in rows], pa.int16())


@settings(deadline=None, print_blob=True, max_examples=60)
@given(batches=st.lists(st.lists(ROWS, max_size=30), max_size=4))
def test_summary_equals_a_plain_count_of_the_rows(batches: list[list[Row]]) -> None:
    summary = tally(batches).summary
    rows = [row for batch in batches for row in batch]
    classes = [row[0] for row in rows]
    confidence = [float(np.float32(row[1])) for row in rows]
    assert summary.class_counts == [classes.count(number) for number in range(10)]
    assert summary.confidence_histogram == [
        sum(min(int(value * CONFIDENCE_BINS), CONFIDENCE_BINS - 1) == number for value in confidence)
        for number in range(CONFIDENCE_BINS)
    ]
    for number in range(10):
        expected = sum(value for value, name in zip(confidence, classes, strict=True) if name == number)
        assert summary.confidence_sums[number] == pytest.approx(expected)
    cells = Counter((row[2], row[0]) for row in rows if row[2] is not None and 0 <= row[2] < 10)
    assert {(cell.label, cell.predicted): cell.images for cell in summary.confusion} == dict(cells)


@settings(deadline=None, print_blob=True, max_examples=60)
@given(batches=st.lists(st.lists(ROWS, max_size=30), max_size=4))
def test_least_confident_images_are_those_of_all_batches(batches: list[list[Row]]) -> None:
    found = tally(batches).least_confident
    rows = [row for batch in batches for row in batch]
    confidence = [float(np.float32(row[1])) for row in rows]
    assert [entry.confidence for entry in found] == sorted(confidence)[:LEAST_CONFIDENT]
    for entry in found:
        assert (entry.confidence, entry.label) == (confidence[int(entry.image)], rows[int(entry.image)][2])


@pytest.mark.parametrize(("confidence", "bins"), [(0.0, 0), (1.0, CONFIDENCE_BINS - 1), (1.0000001, 19)])
def test_confidence_at_the_edge_is_counted(confidence: float, bins: int) -> None:
    histogram = tally([[(0, confidence, None)]]).summary.confidence_histogram
    assert (sum(histogram), histogram[bins]) == (1, 1)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int64()])
def test_labels_of_any_integer_type_are_counted(kind: pa.DataType) -> None:
    found = ShardTally(10)
    found.add_predictions(pa.array(["a", "b"]), columns([(1, 0.5, None)] * 2)[0], pa.array([3, None], kind))
    assert [(cell.label, cell.predicted, cell.images) for cell in found.summary.confusion] == [(3, 1, 1)]


def rejections(*reasons: str) -> dict[int, Rejection]:
    return {row: Rejection(reason.partition(":")[0], reason, False) for row, reason in enumerate(reasons)}


def reasons_of(found: ShardTally) -> list[Any]:
    return [(reason.kind, reason.reason, reason.images, reason.example) for reason in found.reasons]


def test_shard_with_only_rejections_has_reasons_and_no_predictions() -> None:
    found = ShardTally(10)
    found.add_rejections(pa.array(["a", "b", "c"]), rejections("x: 1", "y: z", "x: 2"))
    found.add_predictions(pa.array([], pa.string()), *columns([]))
    assert reasons_of(found) == [("x", "x: N", 2, "a"), ("y", "y: z", 1, "b")]
    assert (sum(found.summary.class_counts), found.summary.confusion, found.least_confident) == (0, [], [])


def test_rare_reasons_of_a_shard_are_summed_up_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.classification.tally._MAX_REASONS", 1)
    found = ShardTally(10)
    found.add_rejections(pa.array(list("abcde")), rejections("x: a", "x: a", "x: b", "y: c", "y: d"))
    assert [entry[:3] for entry in reasons_of(found)] == [
        ("x", "x: a", 2),
        ("y", OTHER_REASONS, 2),
        ("x", OTHER_REASONS, 1),
    ]
