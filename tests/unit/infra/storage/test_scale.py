"""docs/scale.md shows the measured numbers, and its estimates follow from them."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.scale.__main__ import RESULTS
from tests.benchmarks.scale.table import Loose, Slopes, tables

PAGE = Path(__file__).parents[4] / "docs" / "scale.md"


@pytest.fixture
def slopes() -> Slopes:
    return Slopes.of(json.loads(RESULTS.read_text()))


def test_tables_of_the_page_match_the_results():
    page = PAGE.read_text().splitlines()
    missing = [line for line in tables(json.loads(RESULTS.read_text())).splitlines() if line not in page]
    assert not missing, "python -m tests.benchmarks.scale --table"


def test_each_loose_object_is_listed_planned_and_fetched(slopes: Slopes):
    batch = Loose(slopes, 10**9)
    assert batch.objects == batch.pieces == 10**9
    assert batch.requests("GET") >= 10**9
    assert batch.requests("LIST") >= 10**6
