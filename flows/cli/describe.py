"""`fmnist describe`: show the network, and what it does with a few images, layer by layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from flows.cli.printing import Json, print_json
from infra.errors import RequestError
from infra.settings import load_settings
from infra.storage.object_store import ObjectStore, open_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fmnist_model.network import NeuralNetwork

_DEFAULT_IMAGES = ("0", "1", "2")


def describe(
    *image: Annotated[str, Parameter(name="IMAGE")],
    model: str = "champion",
    plot: Path | None = None,
    calibrate: Annotated[bool, Parameter(negative="--no-calibrate")] = True,
    as_json: Json = False,
) -> None:
    """Show the network, and what it does with a few images, layer by layer.

    Parameters
    ----------
    image
        Image files, or numbers of test images. By default, the first three test images, if the store has them.
    model
        Version number, champion, candidate, a run's id for its newest checkpoint, RUN/EPOCH, or fresh for a new network
        with random weights.
    plot
        PNG file to write, with the images and their probabilities as bars.
    calibrate
        Scale the probabilities with the version's temperature.
    """
    store = open_store(load_settings().store)
    if plot is not None and not plot.parent.is_dir():
        raise RequestError(f"--plot: the folder {plot.parent} doesn't exist. Create it first.")
    names, pixels = _images(store, image)
    if plot is not None and not names:
        raise RequestError("--plot: no images to plot. Name image files, or run `fmnist dataset prepare`.")
    network, origin, temperature = _network(store, model)

    from fmnist_model.description import describe as describe_network
    from fmnist_model.network import best_device

    description = describe_network(
        network, pixels, names, origin, best_device(), temperature=temperature if calibrate else 1.0
    )
    if plot is not None:
        from fmnist_model.reports.prediction_plot import plot_predictions

        plot.write_bytes(plot_predictions(pixels, description))
    if as_json:
        print_json(description.to_json())
        return
    from flows.cli.terminal_description import render_description

    Console().print(render_description(description))
    if plot is not None:
        Console(stderr=True).print(f"Wrote {plot}", highlight=False)


def _network(store: ObjectStore, reference: str) -> tuple["NeuralNetwork", str, float]:
    """Load a network. Return it with its origin, and with its temperature, which is 1 unless it is a version."""
    from infra.storage.checkpoints import WEIGHTS, list_checkpoints, list_runs, read_file, read_record
    from infra.storage.model_registry import ALIASES, ModelNotFound, ModelRegistry, read_weights

    if reference == "fresh":
        from fmnist_model.network import NeuralNetwork

        return NeuralNetwork(), "a new network with random weights", 1.0
    run_id, _, epoch = reference.partition("/")
    if reference.isdecimal() or reference in ALIASES:
        try:
            version = ModelRegistry(store).resolve(reference)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error} To see a new network, use --model fresh.") from None
        data, place = read_weights(store, version)
        origin, temperature = f"model version {version.version}, {place}", version.temperature
    elif run_id in list_runs(store) and (epoch == "" or epoch.isdecimal()):
        complete = list_checkpoints(store, run_id)
        if not complete:
            raise RequestError(f"--model: run {run_id} has no complete checkpoint yet.")
        record = read_record(store, run_id, int(epoch) if epoch else complete[-1])
        data, place = read_file(store, record, WEIGHTS), store.uri(record.key)
        origin, temperature = place, 1.0
    else:
        raise RequestError(
            f"--model: {reference!r} not found. It must be a version number, {' or '.join(ALIASES)}, a run in "
            f"{store.root} (RUN or RUN/EPOCH), or fresh."
        )
    from fmnist_model.network import load_weights

    return load_weights(data, place), origin, temperature


def _images(store: ObjectStore, chosen: tuple[str, ...]) -> tuple[list[str], "NDArray[np.uint8]"]:
    """Read image files and test images. Return their names, and their pixels as uint8 `[n, 28, 28]`."""
    import numpy as np

    from fmnist_model.classes import IMAGE_SIZE
    from infra.storage.datasets import read_dataset
    from tasks.dataset import NAME, load_test_image

    dataset = read_dataset(store, NAME)
    if not chosen and dataset is not None:
        chosen = _DEFAULT_IMAGES
    pixels = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    names = []
    for slot, one in enumerate(chosen):
        if one.isdecimal() and not Path(one).exists():
            if dataset is None:
                raise RequestError(
                    f"Test image {one}: {store.root} has no {NAME} yet. Import it with `fmnist dataset prepare`."
                )
            pixels[slot], label = load_test_image(store, dataset, int(one))
            names.append(f"test image {one} ({label})")
        else:
            pixels[slot] = _read_image(one)
            names.append(one)
    return names, pixels


def _read_image(path: str) -> "NDArray[np.uint8]":
    from fmnist_model.errors import InvalidImage
    from fmnist_model.images.decode import decode_image
    from fmnist_model.images.rejected import ImageRejected

    try:
        return decode_image(_read_uri(path) if "://" in path else Path(path).read_bytes())
    except OSError as error:
        raise InvalidImage(f"{path} can't be read: {error.strerror}.") from None
    except ImageRejected as reason:
        raise InvalidImage(f"{path} can't be used: {reason}.") from None


def _read_uri(uri: str) -> bytes:
    from fmnist_model.errors import InvalidImage
    from infra.storage.input_files import InputUnreadable, read_input, stat_input
    from infra.storage.uris import possible_uris

    try:
        found = next(filter(None, map(stat_input, possible_uris(uri))), None)
        if found is None:
            raise InputUnreadable("it does not exist")
        return read_input(found.uri, found.fingerprint, 2**28)
    except InputUnreadable as reason:
        # The part before the @ may hold a user and password.
        raise InvalidImage(f"{uri.rpartition('@')[2]} can't be read: {str(reason).rstrip('.')}.") from None
