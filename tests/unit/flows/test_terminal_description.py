"""The terminal shows the whole description of a network, in 80 columns."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from flows.cli.terminal_description import render_description
from fmnist_model.classes import CLASS_NAMES
from fmnist_model.description import Description, describe
from fmnist_model.network import NeuralNetwork


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (3, 28, 28), np.uint8)


@pytest.fixture
def network() -> NeuralNetwork:
    torch.manual_seed(7)
    network = NeuralNetwork()
    with torch.no_grad():
        network.linear_relu_stack[4].weight *= 60  # for probabilities far from 1/10
    return network


@pytest.fixture
def description(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> Description:
    return describe(network, pixels, ["a.png", "b.png", "c.png"], "a test", "cpu")


def printed(description: Description, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(render_description(description))
    return capture.get()


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut_off(description: Description, width: int) -> None:
    text = printed(description, width)
    image = description.images[0]
    expected = [
        "cpu",
        "(0): Linear(in_features=784, out_features=512, bias=True)",
        "[3, 28, 28] -> [3, 784]",
        "[3, 512] -> [3, 10]",
        f"{description.layers[2].zeroed_share:.2%}",
        f"{image.predicted_class} {image.predicted_label}",
        f"{image.confidence:.2%}",
        *(f"{logit:.2f}" for logit in image.logits),
        "linear_relu_stack.0.weight  [512, 784]  401,408",
        "669,706",
    ]
    assert [one for one in expected if one not in text] == []
    assert "\x1b" not in text


def test_temperature_is_shown_unless_it_is_one(
    network: NeuralNetwork, pixels: NDArray[np.uint8], description: Description
) -> None:
    tempered = describe(network, pixels, ["a", "b", "c"], "a test", "cpu", temperature=2.5)
    assert "temperature 2.500" in printed(tempered, 80)
    assert "temperature" not in printed(description, 80)


def test_three_most_probable_classes_are_listed_in_order(description: Description) -> None:
    image = description.images[0]
    order = np.argsort(image.probabilities)[::-1]
    lines = printed(description, 80).splitlines()
    first = next(number for number, line in enumerate(lines) if "a.png" in line)
    for line, number in zip(lines[first : first + 3], order[:3], strict=True):
        assert f"{number} {CLASS_NAMES[number]} " in line
        assert f" {image.probabilities[number]:.2%} " in line


def test_names_are_printed_literally(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> None:
    text = printed(describe(network, pixels[:2], ["[red]x[/]", "\x1b[2J\udcff"], "a test [bold]", "cpu"), 80)
    assert "[red]x[/]" in text
    assert "?[2J?" in text
    assert "a test [bold]" in text


def test_description_without_images_shows_only_structure_and_parameters(network: NeuralNetwork) -> None:
    text = printed(describe(network, np.empty((0, 28, 28), np.uint8), [], "a test", "cpu"), 80)
    assert "669,706" in text
    assert "Linear(in_features=784" in text
    assert "->" not in text
