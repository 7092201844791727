"""Import Fashion-MNIST into the store, as Parquet in Hugging Face's image layout."""

import hashlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fmnist_model.classes import CLASS_NAMES
from fmnist_model.dataset import from_table, to_table
from fmnist_model.images import TRANSFORM_VERSION
from fmnist_model.images.idx import FASHION_MNIST_SHA256, has_fashion_mnist, read_fashion_mnist
from infra.cluster.progress_board import ProgressBoard
from infra.errors import RequestError
from infra.provenance import Provenance
from infra.settings import Settings, load_settings
from infra.storage.datasets import DatasetRecord, DatasetSplit, read_dataset, write_dataset
from infra.storage.keys import dataset_folder, dataset_part_key
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.uris import canonical_from_raw
from tasks.step import step

NAME = "fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"

_PART_IMAGES = 10_000
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_VERSION = hashlib.sha256("".join(FASHION_MNIST_SHA256.values()).encode()).hexdigest()[:12]


@step("prepare dataset")
def prepare_dataset() -> DatasetRecord:
    """Return the record of Fashion-MNIST in the store, and import it first if it is missing.

    Raises:
        InvalidDataset: a source file is missing, truncated, or not from Fashion-MNIST.
        RequestError: no source to import from was found.
    """
    settings = load_settings()
    store = open_store(settings.store)
    record = read_dataset(store, NAME)
    if record is None:
        ProgressBoard().post("import dataset", "Importing Fashion-MNIST into the store")
        record = import_dataset(store, settings)
    return record


def import_dataset(store: ObjectStore, settings: Settings) -> DatasetRecord:
    """Find the source files, verify their checksums, and write them to the store as Parquet.

    Raises:
        InvalidDataset: a source file is missing, truncated, or not from Fashion-MNIST.
        RequestError: no source to import from was found.
    """
    with source_files(settings) as (folder, source):
        files = read_fashion_mnist(folder)
    splits = {
        split: _write_split(store, split, files[images], files[labels]) for split, (images, labels) in _FILES.items()
    }
    record = DatasetRecord(
        name=NAME,
        version=_VERSION,
        source=source,
        splits=splits,
        transform=TRANSFORM_VERSION,
        provenance=Provenance.now(),
    )
    write_dataset(store, record)
    return record


def load_test_image(store: ObjectStore, dataset: DatasetRecord, number: int) -> tuple[NDArray[np.uint8], str]:
    """Load one test image.

    Args:
        store: the store with the dataset.
        dataset: record of the dataset.
        number: number of the image, from 0.

    Returns:
        The image, uint8 `[28, 28]`, and the name of its class.

    Raises:
        RequestError: the split has no image with this number, or its files are incomplete.
    """
    split = dataset.splits["test"]
    if number >= split.images:
        raise RequestError(f"Test image {number} doesn't exist. Test images are numbered 0 to {split.images - 1}.")
    for key in split.parts:
        filesystem, path = store.arrow(key)
        with pq.ParquetFile(path, filesystem=filesystem) as part:
            if number < part.metadata.num_rows:
                found = from_table([part.read(["image", "label"]).slice(number, 1)], store.uri(key))
                return found.images[0], CLASS_NAMES[found.labels[0]]
            number -= part.metadata.num_rows
    raise RequestError(
        f"{store.uri(dataset_folder(dataset.name))} is incomplete: its files hold fewer images than dataset.json "
        "lists. Restore the files, or import the dataset again."
    )


def split_uris(dataset: DatasetRecord, split: str) -> list[str]:
    """Return the URIs of a split's Parquet files, for use as inputs of a classification."""
    store = open_store(load_settings().store)
    uris = [store.uri(key) for key in dataset.splits[split].parts]
    return [uri if uri.startswith("s3://") else canonical_from_raw(uri) for uri in uris]


def check_source(settings: Settings) -> None:
    """Verify the source files on this machine, unless the dataset is already in the store.

    Raises:
        InvalidDataset: a file is missing, truncated, or not from Fashion-MNIST. The message names it.
        RequestError: `FMNIST_DATASET_DIR` isn't a folder.
    """
    if read_dataset(open_store(settings.store), NAME) is not None:
        return
    if (folder := _local_folder(settings)) is not None:
        read_fashion_mnist(folder)


@contextmanager
def source_files(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Provide a folder with the four IDX files until the block ends.

    Yields:
        The folder, and a description of where the files come from.

    Raises:
        RequestError: no source to import from was found.
    """
    folder = _local_folder(settings)
    if folder is not None:
        yield folder, str(folder)
        return
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as scratch:
        if unpacked := _unpack_debian_package(Path(scratch)):
            yield unpacked, f"Debian package {DEBIAN_PACKAGE}"
        else:
            yield _download(Path(scratch)), "torchvision.datasets.FashionMNIST"


def _write_split(store: ObjectStore, split: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> DatasetSplit:
    count = -(-len(labels) // _PART_IMAGES)

    def write(number: int) -> str:
        chosen = slice(number * _PART_IMAGES, (number + 1) * _PART_IMAGES)
        key = dataset_part_key(NAME, split, number, count)
        table = to_table(images[chosen], labels[chosen], number * _PART_IMAGES, split)
        with store.publish(key) as stream:
            pq.write_table(table, stream, row_group_size=2500)
        return key

    with ThreadPoolExecutor(4) as threads:  # most of the time goes into compression, which releases the GIL
        return DatasetSplit(parts=list(threads.map(write, range(count))), images=len(labels))


def _local_folder(settings: Settings) -> Path | None:
    if settings.dataset_dir is not None:
        if not settings.dataset_dir.is_dir():
            raise RequestError(f"FMNIST_DATASET_DIR: {settings.dataset_dir} is not a folder.")
        return settings.dataset_dir
    return DEBIAN_FOLDER if has_fashion_mnist(DEBIAN_FOLDER) else None


def _unpack_debian_package(scratch: Path) -> Path | None:
    """Download the package from the machine's own Debian mirror and unpack it. This doesn't need root.

    Returns:
        The folder with the files, or None if the package is not available.
    """
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if not apt or not dpkg:
        return None
    try:
        subprocess.run([apt, "download", DEBIAN_PACKAGE], cwd=scratch, check=True, capture_output=True, timeout=120)
        package = next(scratch.glob("*.deb"))
        subprocess.run([dpkg, "-x", package, scratch], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError, StopIteration):
        return None
    return scratch / DEBIAN_FOLDER.relative_to("/")


def _download(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        FashionMNIST(str(scratch), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            f"Fashion-MNIST is not on this machine and can't be downloaded ({reason}). Put its four IDX files into a "
            f"folder and set FMNIST_DATASET_DIR to it, or install the Debian package {DEBIAN_PACKAGE}."
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return scratch / "FashionMNIST" / "raw"
