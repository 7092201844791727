"""`describe` and its two faces against the tutorial's code and against NumPy in float64."""

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from flows.cli.describe import _read_image
from flows.cli.terminal_description import render_description
from fmnist_model.description import Description, describe
from fmnist_model.errors import InvalidImage
from fmnist_model.images import decode as images
from fmnist_model.network import NeuralNetwork
from fmnist_model.reports.prediction_plot import plot_predictions
from tests.unit.fmnist_model.tutorial_network import TutorialNetwork

LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
WINNER_COLOR = (0xC2, 0x41, 0x0C)


class OtherNetwork(nn.Module):
    """The same interface with other parts: one ReLU used twice, in place; dropout; a module inside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(4 * 26 * 26, 16)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.body(x[:, None]))
        x = self.relu(self.hidden(x))
        return self.head(self.dropout(x))


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (3, 28, 28), np.uint8)


@pytest.fixture
def network() -> NeuralNetwork:
    torch.manual_seed(7)
    network = NeuralNetwork()
    with torch.no_grad():
        # Unlike shares of zeros after the two ReLUs, far from one half, and probabilities far from a tenth.
        network.linear_relu_stack[0].bias -= 0.25
        network.linear_relu_stack[2].bias += 0.1
        network.linear_relu_stack[4].weight *= 60
    return network


@pytest.fixture
def description(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> Description:
    return describe(network, pixels, ["a.png", "b.png", "c.png"], "a test", "cpu")


def rigged_network(logits: list[float]) -> NeuralNetwork:
    """A network with the same logits for every image."""
    network = NeuralNetwork()
    with torch.no_grad():
        network.linear_relu_stack[4].weight.zero_()
        network.linear_relu_stack[4].bias.copy_(torch.tensor(logits))
    return network


def rigged_description(n: int, *, winner: int, confidence: float) -> Description:
    """Of `n` black images, all of class `winner` with that confidence."""
    logits = [0.0] * 10
    logits[winner] = float(np.log(9 * confidence / (1 - confidence)))
    pixels = np.zeros((n, 28, 28), np.uint8)
    return describe(rigged_network(logits), pixels, [f"{number}.png" for number in range(n)], "a test", "cpu")


def numpy_walk(network: nn.Module, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """The activations after each step, by matrix products in float64."""
    state = {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}

    def linear(x: NDArray[np.float64], number: int) -> NDArray[np.float64]:
        stack = f"linear_relu_stack.{number}"
        return x @ state[f"{stack}.weight"].T + state[f"{stack}.bias"]

    first = linear(pixels.reshape(len(pixels), 784) / 255.0, 0)
    second = linear(np.maximum(first, 0), 2)
    return {"first": first, "second": second, "logits": linear(np.maximum(second, 0), 4)}


def test_layers_are_the_tutorial_s_with_their_shapes(description: Description) -> None:
    assert description.input_shape == (3, 28, 28)
    assert [(layer.name, layer.kind, layer.input_shape, layer.output_shape) for layer in description.layers] == [
        ("flatten", "Flatten", (3, 28, 28), (3, 784)),
        ("linear_relu_stack.0", "Linear", (3, 784), (3, 512)),
        ("linear_relu_stack.1", "ReLU", (3, 512), (3, 512)),
        ("linear_relu_stack.2", "Linear", (3, 512), (3, 512)),
        ("linear_relu_stack.3", "ReLU", (3, 512), (3, 512)),
        ("linear_relu_stack.4", "Linear", (3, 512), (3, 10)),
    ]


def test_zeroed_share_is_the_share_of_negative_sums_before_the_relu(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    walk = numpy_walk(network, pixels)
    expected = [(walk[name] <= 0).mean() for name in ("first", "second")]
    found = [layer.zeroed_share for layer in description.layers if layer.kind == "ReLU"]
    # Of 1,536 activations one may be so near zero that float32 and float64 disagree about its sign.
    assert found == pytest.approx(expected, abs=1.5 / 1536)
    assert expected[0] > 0.6, "the fixture's shares must tell zeroed from kept"
    assert expected[1] < 0.4, "and the first ReLU from the second"


def test_only_a_relu_has_a_zeroed_share(description: Description) -> None:
    assert {layer.kind for layer in description.layers if layer.zeroed_share is None} == {"Flatten", "Linear"}


def test_logits_are_those_of_the_tutorial_s_code(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    tutorial = TutorialNetwork()
    tutorial.load_state_dict(network.state_dict())
    logits = tutorial(torch.tensor(pixels) / 255)
    assert torch.allclose(torch.tensor([image.logits for image in description.images]), logits, atol=1e-4)


def test_probabilities_are_the_softmax_of_float64_logits(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    exponentials = np.exp(numpy_walk(network, pixels)["logits"])
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([image.probabilities for image in description.images], expected, atol=1e-5)
    assert np.ptp(expected) > 0.3, "the fixture's probabilities must differ"


def test_predicted_class_is_the_likeliest_and_confidence_its_probability(
    description: Description, network: NeuralNetwork, pixels: NDArray[np.uint8]
) -> None:
    winners = numpy_walk(network, pixels)["logits"].argmax(axis=1).tolist()
    assert [image.predicted_class for image in description.images] == winners
    for image in description.images:
        assert image.confidence == image.probabilities[image.predicted_class] == max(image.probabilities)


@pytest.mark.parametrize("winner", range(10))
def test_predicted_label_is_the_class_s_name(winner: int) -> None:
    image = rigged_description(1, winner=winner, confidence=0.5).images[0]
    assert (image.predicted_class, image.predicted_label) == (winner, LABELS[winner])


def test_images_keep_names_and_order(description: Description) -> None:
    assert [image.name for image in description.images] == ["a.png", "b.png", "c.png"]


def test_parameters_are_counted(description: Description) -> None:
    assert [(one.name, one.shape, one.count) for one in description.parameters] == [
        ("linear_relu_stack.0.weight", (512, 784), 401_408),
        ("linear_relu_stack.0.bias", (512,), 512),
        ("linear_relu_stack.2.weight", (512, 512), 262_144),
        ("linear_relu_stack.2.bias", (512,), 512),
        ("linear_relu_stack.4.weight", (10, 512), 5_120),
        ("linear_relu_stack.4.bias", (10,), 10),
    ]
    assert description.total_parameters == 669_706


def test_first_values_are_those_of_the_state_dict(description: Description, network: NeuralNetwork) -> None:
    expected = {name: tuple(tensor.reshape(-1).tolist()[:5]) for name, tensor in network.state_dict().items()}
    assert {one.name: one.first_values for one in description.parameters} == expected


def test_device_origin_and_structure_are_told(description: Description, network: NeuralNetwork) -> None:
    assert (description.device, description.origin) == ("cpu", "a test")
    assert description.structure == str(network)


def test_no_image_leaves_structure_and_parameters(network: NeuralNetwork, description: Description) -> None:
    empty = describe(network, np.empty((0, 28, 28), np.uint8), [], "a test", "cpu")
    assert (empty.input_shape, empty.layers, empty.images) == (None, (), ())
    assert (empty.structure, empty.parameters) == (description.structure, description.parameters)
    assert empty.total_parameters == 669_706


def test_network_is_left_as_it_was(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> None:
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    describe(network, pixels, ["a", "b", "c"], "a test", "cpu")
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_another_network_is_described_in_the_order_in_which_it_runs(pixels: NDArray[np.uint8]) -> None:
    description = describe(OtherNetwork(), pixels, ["a", "b", "c"], "a test", "cpu")
    assert [(layer.name, layer.output_shape) for layer in description.layers] == [
        ("body.0", (3, 4, 26, 26)),
        ("body.1", (3, 2704)),
        ("relu", (3, 2704)),
        ("hidden", (3, 16)),
        ("relu", (3, 16)),
        ("dropout", (3, 16)),
        ("head", (3, 10)),
    ]


def test_temperature_divides_the_logits_of_the_softmax_alone(
    network: NeuralNetwork, pixels: NDArray[np.uint8], description: Description
) -> None:
    tempered = describe(network, pixels, ["a.png", "b.png", "c.png"], "a test", "cpu", temperature=2.5)
    for plain, image in zip(description.images, tempered.images, strict=True):
        expected = np.exp(np.array(plain.logits) / 2.5)
        assert (image.logits, image.predicted_class) == (plain.logits, plain.predicted_class)
        assert image.probabilities == pytest.approx(expected / expected.sum(), rel=1e-5)
        assert image.confidence == max(image.probabilities) < plain.confidence
    assert tempered.to_json()["temperature"] == 2.5


def test_dropout_is_off(pixels: NDArray[np.uint8]) -> None:
    network = OtherNetwork().train()
    one, other = (describe(network, pixels, ["a", "b", "c"], "a test", "cpu") for _ in range(2))
    assert one.images == other.images


def test_json_comes_back_as_it_went(description: Description) -> None:
    figures = description.to_json()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["class_names"] == LABELS
    assert figures["layers"][0]["output_shape"] == [3, 784]
    assert figures["images"][2]["logits"] == list(description.images[2].logits)


def test_json_has_null_for_numbers_that_are_not_finite(pixels: NDArray[np.uint8]) -> None:
    network = rigged_network([float("inf")] + [0.0] * 9)
    figures = describe(network, pixels[:1], ["a"], "a test", "cpu").to_json()
    json.dumps(figures, allow_nan=False)
    assert figures["images"][0]["logits"] == [None] + [0.0] * 9


def test_names_for_other_images_are_refused(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="2 names for 3 images"):
        describe(network, pixels, ["a", "b"], "a test", "cpu")


@pytest.mark.parametrize("wrong", [np.zeros((1, 28, 28), np.float32), np.zeros((1, 28, 27), np.uint8)])
def test_other_pixels_are_refused(network: NeuralNetwork, wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"instead of uint8 \[n, 28, 28\]"):
        describe(network, wrong, ["a"], "a test", "cpu")


def test_a_network_of_other_classes_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"returned \[3, 7\] instead of logits \[3, 10\]"):
        describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 7)), pixels, ["a", "b", "c"], "a test", "cpu")


def drawn(pixels: NDArray[np.uint8], description: Description) -> NDArray[np.uint8]:
    """The picture, uint8 `[height, width, 3]`, after a check that it is a PNG file."""
    with Image.open(io.BytesIO(plot_predictions(pixels, description))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def highlighted_bar(picture: NDArray[np.uint8]) -> tuple[float, int]:
    """Middle row, and width in pixels, of the bar in the winner's colour, in a picture of one image."""
    winner = (picture == WINNER_COLOR).all(axis=2)
    winner[:, :335] = False  # the title and the class's name are as red as the bar, and left of it
    rows, columns = np.nonzero(winner)
    return float(rows.mean()), int(np.ptp(columns)) + 1


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (12, 3, 4), (24, 3, 8)])
def test_picture_grows_with_the_images(n: int, columns: int, rows: int) -> None:
    height, width, _ = drawn(np.zeros((n, 28, 28), np.uint8), rigged_description(n, winner=3, confidence=0.7)).shape
    assert width / columns == pytest.approx(545, abs=35)
    assert height / rows == pytest.approx(290, abs=20)


def test_picture_shows_each_image() -> None:
    pixels = np.zeros((3, 28, 28), np.uint8)
    pixels[1] = 255
    pixels[2, :14] = 255  # its upper half alone
    picture = drawn(pixels, rigged_description(3, winner=3, confidence=0.7))
    # A spot well inside the upper, and one well inside the lower half of each image.
    seen = [[int(picture[y, 20 + tile * 555 + 60, 0]) for y in (110, 240)] for tile in range(3)]
    assert seen == [[0, 0], [255, 255], [255, 0]]


def test_picture_s_highlighted_bar_is_the_predicted_class_s() -> None:
    pixels = np.zeros((1, 28, 28), np.uint8)
    middles = [
        highlighted_bar(drawn(pixels, rigged_description(1, winner=winner, confidence=0.7)))[0] for winner in range(10)
    ]
    assert np.diff(middles) == pytest.approx([20.5] * 9, abs=1.5)


def test_picture_s_bars_are_as_long_as_the_probabilities() -> None:
    pixels = np.zeros((1, 28, 28), np.uint8)
    widths = [
        highlighted_bar(drawn(pixels, rigged_description(1, winner=4, confidence=confidence)))[1]
        for confidence in (0.4, 0.8)
    ]
    assert widths[1] / widths[0] == pytest.approx(2, abs=0.06)


def test_picture_of_too_many_images_shows_24_and_a_note() -> None:
    some, many = (
        drawn(np.zeros((n, 28, 28), np.uint8), rigged_description(n, winner=3, confidence=0.7)) for n in (24, 25)
    )
    assert many.shape[1] == some.shape[1]
    note = many[some.shape[0] - 20 :]
    assert 0 < len(note) < 80
    assert note.min() < 150, "the note is written below the last row"


def test_picture_needs_no_pyplot(
    description: Description, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it now fails
    assert plot_predictions(pixels, description)


@pytest.mark.parametrize("name", ["$x_^$", "a\nb", "\udcff.png", "靴.png", "W" * 250, ""])
def test_picture_takes_any_file_s_name(network: NeuralNetwork, pixels: NDArray[np.uint8], name: str) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        picture = drawn(pixels[:1], describe(network, pixels[:1], [name], "a test", "cpu"))
    assert [str(warning.message) for warning in shown] == []
    assert picture[:, -15:].min() == 255, "nothing runs over the right margin"


def test_no_picture_of_no_image(network: NeuralNetwork) -> None:
    nothing = np.empty((0, 28, 28), np.uint8)
    with pytest.raises(ValueError, match="no image to draw"):
        plot_predictions(nothing, describe(network, nothing, [], "a test", "cpu"))


def test_no_picture_of_other_images(description: Description, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="2 images, but a description of 3"):
        plot_predictions(pixels[:2], description)


def printed(description: Description, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(render_description(description))
    return capture.get()


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_every_figure_whole(description: Description, width: int) -> None:
    text = printed(description, width)
    image = description.images[0]
    expected = [
        "Using cpu device",
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


def test_terminal_tells_a_temperature_where_there_is_one(
    network: NeuralNetwork, pixels: NDArray[np.uint8], description: Description
) -> None:
    tempered = describe(network, pixels, ["a", "b", "c"], "a test", "cpu", temperature=2.5)
    assert "Softmax at temperature 2.500" in printed(tempered, 80)
    assert "temperature" not in printed(description, 80)


def test_terminal_lists_the_three_likeliest_classes_in_order(description: Description) -> None:
    image = description.images[0]
    order = np.argsort(image.probabilities)[::-1]
    lines = printed(description, 80).splitlines()
    first = next(number for number, line in enumerate(lines) if "a.png" in line)
    for line, number in zip(lines[first : first + 3], order[:3], strict=True):
        assert f"{number} {LABELS[number]} " in line
        assert f" {image.probabilities[number]:.2%} " in line


def test_terminal_prints_names_as_they_are(network: NeuralNetwork, pixels: NDArray[np.uint8]) -> None:
    text = printed(describe(network, pixels[:2], ["[red]x[/]", "\x1b[2J\udcff"], "a test [bold]", "cpu"), 80)
    assert "[red]x[/]" in text
    assert "?[2J?" in text
    assert "a test [bold]" in text


def test_terminal_without_images_shows_structure_and_parameters_alone(network: NeuralNetwork) -> None:
    text = printed(describe(network, np.empty((0, 28, 28), np.uint8), [], "a test", "cpu"), 80)
    assert "669,706" in text
    assert "Linear(in_features=784" in text
    assert "->" not in text


def test_unexpected_exception_in_an_image_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(picture: Image.Image) -> Image.Image:
        raise AttributeError("two\nlines")

    monkeypatch.setattr(images, "_to_model_input", fail)
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.jpg")
    with pytest.raises(InvalidImage, match=r"odd\.jpg can't be used: damaged: AttributeError: two lines\.$") as raised:
        _read_image(str(tmp_path / "odd.jpg"))
    assert "\n" not in str(raised.value)
