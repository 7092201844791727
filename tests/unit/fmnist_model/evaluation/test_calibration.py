"""The fitted temperature minimizes the log loss."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional

from fmnist_model.evaluation.calibration import fit_temperature

SEEDS = st.integers(0, 2**31)


def drawn(seed: int, n: int = 200, true_temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Random logits, and labels drawn from their probabilities at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 10, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial((logits / true_temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


def log_loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return functional.cross_entropy(logits.double() / temperature, labels).item()


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 4.0])
def test_temperature_is_the_best_of_a_fine_grid(true_temperature: float):
    logits, labels = drawn(1, true_temperature=true_temperature)
    grid = np.geomspace(0.05, 20, 4_001)
    losses = [log_loss(logits, labels, temperature) for temperature in grid]
    best = grid[int(np.argmin(losses))]
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(best, rel=2e-3)  # half a step of the grid is 0.00075
    assert log_loss(logits, labels, fitted) <= min(losses)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_of_the_labels_distribution_is_found(true_temperature: float):
    assert fit_temperature(*drawn(2, 50_000, true_temperature)) == pytest.approx(true_temperature, rel=0.03)


@settings(deadline=None)
@given(seed=SEEDS, n=st.integers(1, 50), spread=st.floats(0, 1e4))
def test_calibration_never_increases_the_log_loss(seed: int, n: int, spread: float):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, 10, generator=generator) * spread).float()
    labels = torch.randint(0, 10, (n,), generator=generator)
    before = log_loss(logits, labels, 1.0)
    assert log_loss(logits, labels, fit_temperature(logits, labels)) <= before + 1e-9 * max(1, before)


@settings(deadline=None)
@given(seed=SEEDS, factor=st.floats(0.25, 4))
def test_temperature_scales_with_the_logits(seed: int, factor: float):
    logits, labels = drawn(seed)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-9)


def test_constant_added_to_the_logits_does_not_change_the_temperature():
    logits, labels = drawn(3)
    assert fit_temperature(logits + 1_000, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


def test_separable_logits_give_the_lowest_temperature():
    labels = torch.arange(10)
    assert fit_temperature(torch.eye(10) * 0.1, labels) == pytest.approx(0.05)


def test_logits_that_are_always_wrong_give_the_highest_temperature():
    labels = torch.arange(10)
    assert fit_temperature(torch.eye(10), labels.roll(1)) == pytest.approx(20)


@pytest.mark.parametrize("logits", [torch.full((5, 10), 0.1), torch.eye(5, 10) * 1e5], ids=["constant", "certain"])
def test_temperature_is_one_if_no_temperature_is_better(logits: Tensor):
    assert fit_temperature(logits, torch.arange(5)) == 1


def test_fit_without_images_is_refused():
    with pytest.raises(ValueError, match="without images"):
        fit_temperature(torch.empty(0, 10), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float):
    logits, labels = drawn(4)
    logits[7, 3] = value
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(logits, labels)
