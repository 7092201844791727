"""The plot shows each image and its probabilities."""

import io
import sys
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fmnist_model.description import Description, describe
from fmnist_model.network import NeuralNetwork
from fmnist_model.reports.prediction_plot import plot_predictions
from tests.unit.fmnist_model.rigged_description import rigged_description

WINNER_COLOR = (0xC2, 0x41, 0x0C)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (3, 28, 28), np.uint8)


def plotted(pixels: NDArray[np.uint8], description: Description) -> NDArray[np.uint8]:
    """Plot, check that the result is a PNG file, and decode it to uint8 `[height, width, 3]`."""
    with Image.open(io.BytesIO(plot_predictions(pixels, description))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def highlighted_bar(picture: NDArray[np.uint8]) -> tuple[float, int]:
    """Middle row and width, in pixels, of the winner's bar in a plot of one image."""
    winner = (picture == WINNER_COLOR).all(axis=2)
    winner[:, :335] = False  # leave out the title and the class's name, which have the same color
    rows, columns = np.nonzero(winner)
    return float(rows.mean()), int(np.ptp(columns)) + 1


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (12, 3, 4), (24, 3, 8)])
def test_size_grows_with_the_number_of_images(n: int, columns: int, rows: int) -> None:
    height, width, _ = plotted(np.zeros((n, 28, 28), np.uint8), rigged_description(n, winner=3, confidence=0.7)).shape
    assert width / columns == pytest.approx(545, abs=35)
    assert height / rows == pytest.approx(290, abs=20)


def test_each_image_is_shown() -> None:
    pixels = np.zeros((3, 28, 28), np.uint8)
    pixels[1] = 255
    pixels[2, :14] = 255  # only the upper half
    picture = plotted(pixels, rigged_description(3, winner=3, confidence=0.7))
    # One pixel well inside the upper half of each image, and one well inside the lower half.
    seen = [[int(picture[y, 20 + tile * 555 + 60, 0]) for y in (110, 240)] for tile in range(3)]
    assert seen == [[0, 0], [255, 255], [255, 0]]


def test_highlighted_bar_is_that_of_the_predicted_class() -> None:
    pixels = np.zeros((1, 28, 28), np.uint8)
    middles = [
        highlighted_bar(plotted(pixels, rigged_description(1, winner=winner, confidence=0.7)))[0]
        for winner in range(10)
    ]
    assert np.diff(middles) == pytest.approx([20.5] * 9, abs=1.5)


def test_bars_are_proportional_to_the_probabilities() -> None:
    pixels = np.zeros((1, 28, 28), np.uint8)
    widths = [
        highlighted_bar(plotted(pixels, rigged_description(1, winner=4, confidence=confidence)))[1]
        for confidence in (0.4, 0.8)
    ]
    assert widths[1] / widths[0] == pytest.approx(2, abs=0.06)


def test_plot_of_too_many_images_shows_24_and_a_note() -> None:
    some, many = (
        plotted(np.zeros((n, 28, 28), np.uint8), rigged_description(n, winner=3, confidence=0.7)) for n in (24, 25)
    )
    assert many.shape[1] == some.shape[1]
    note = many[some.shape[0] - 20 :]
    assert 0 < len(note) < 80
    assert note.min() < 150, "there must be a note below the last row"


def test_plot_does_not_import_pyplot(pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # makes the import fail
    assert plot_predictions(pixels, rigged_description(3, winner=3, confidence=0.7))


@pytest.mark.parametrize("name", ["$x_^$", "a\nb", "\udcff.png", "靴.png", "W" * 250, ""])
def test_any_file_name_fits_without_a_warning(pixels: NDArray[np.uint8], name: str) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        picture = plotted(pixels[:1], describe(NeuralNetwork(), pixels[:1], [name], "a test", "cpu"))
    assert [str(warning.message) for warning in shown] == []
    assert picture[:, -15:].min() == 255, "something is drawn over the right margin"


def test_plot_without_images_is_refused() -> None:
    nothing = np.empty((0, 28, 28), np.uint8)
    with pytest.raises(ValueError, match="at least one image"):
        plot_predictions(nothing, describe(NeuralNetwork(), nothing, [], "a test", "cpu"))


def test_description_of_other_images_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"2 images.* 3\b"):
        plot_predictions(pixels[:2], rigged_description(3, winner=3, confidence=0.7))
