"""The population stability index measures how far a class mix moved."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_model.evaluation.drift import MOVED_MUCH, population_stability_index

mixes = st.lists(st.integers(0, 10_000), min_size=10, max_size=10).filter(any)


def test_index_is_the_sum_over_classes():
    expected = (0.6 - 0.5) * math.log(0.6 / 0.5) + (0.4 - 0.5) * math.log(0.4 / 0.5)
    assert population_stability_index([50, 50], [60, 40]) == pytest.approx(expected)


@given(mixes, st.integers(1, 1000))
def test_size_of_a_batch_does_not_change_the_index(mix: list[int], times: int):
    mix = [count + 1 for count in mix]
    assert population_stability_index(mix, [times * count for count in mix]) == pytest.approx(0, abs=1e-9)


@given(mixes, mixes)
def test_index_is_finite_and_symmetric(before: list[int], after: list[int]):
    index = population_stability_index(before, after)
    assert math.isfinite(index)
    assert index == pytest.approx(population_stability_index(after, before))


def test_mix_of_other_classes_has_moved_much():
    assert population_stability_index([100, 0], [0, 100]) > MOVED_MUCH


@pytest.mark.parametrize(("before", "after"), [([0, 0], [1, 2]), ([1, 2], [0, 0]), ([1], [1, 2])])
def test_mixes_that_can_not_be_compared_are_refused(before: list[int], after: list[int]):
    with pytest.raises(ValueError, match="mixes"):
        population_stability_index(before, after)
