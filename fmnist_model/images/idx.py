"""Parse IDX, the file format of MNIST and its successors, and read the four files of Fashion-MNIST.

An IDX file has two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian uint32, and the
values in C order. Source: http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_model.errors import InvalidDataset

UNSIGNED_BYTE = 0x08
"""Type byte of an IDX file of unsigned bytes."""

FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of each decompressed file. The gzip originals have the MD5 sums in torchvision's FashionMNIST."""


def parse_idx(data: bytes, origin: str) -> NDArray[np.uint8]:
    """Parse an IDX file of unsigned bytes.

    Args:
        data: the file's bytes, plain or gzipped.
        origin: the file's name, for error messages.

    Returns:
        An array with the dimensions in the header. It shares memory with `data` if the file is plain.

    Raises:
        InvalidDataset: the file isn't IDX, is damaged, holds values of another type, or has fewer or more values than
            its header says.
    """
    data = _decompress(data, origin)
    if len(data) < 4 or data[:2] != b"\0\0":
        raise InvalidDataset(
            f"{origin} is not an IDX file: it starts with {data[:4].hex(' ') or 'nothing'} instead of 00 00."
        )
    if data[2] != UNSIGNED_BYTE:
        raise InvalidDataset(f"{origin} holds values of type 0x{data[2]:02x}. Expected unsigned bytes (0x08).")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise InvalidDataset(f"{origin} is truncated: it ends inside its header.")
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    expected = header + math.prod(shape)
    if len(data) != expected:
        what = "truncated" if len(data) < expected else "longer than its header says"
        raise InvalidDataset(f"{origin} is {what}: {len(data):,} bytes instead of {expected:,} (shape {list(shape)}).")
    try:
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    except ValueError as error:  # more dimensions or a larger size than NumPy supports
        raise InvalidDataset(f"{origin} can't be an array of shape {list(shape)[:8]}: {error}.") from None


def _decompress(data: bytes, origin: str) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidDataset(f"{origin} is a damaged or truncated gzip file: {error}.") from None


def read_fashion_mnist(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Read the four Fashion-MNIST files in a folder, plain or gzipped, and verify their SHA-256.

    Returns:
        Arrays by file name: images uint8 `[60000 | 10000, 28, 28]`, labels uint8 `[60000 | 10000]`.

    Raises:
        InvalidDataset: a file is missing, unreadable, truncated, or not the published one. The message names it.
    """
    return {name: _read_verified(folder, name, sha256) for name, sha256 in FASHION_MNIST_SHA256.items()}


def _read_verified(folder: Path, name: str, sha256: str) -> NDArray[np.uint8]:
    candidates = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not candidates:
        raise InvalidDataset(f"{folder} contains neither {name} nor {name}.gz. Download the missing file.")
    try:
        data = candidates[0].read_bytes()
    except OSError as error:
        raise InvalidDataset(f"{candidates[0]} can't be read: {error.strerror}.") from None
    data = _decompress(data, str(candidates[0]))
    values = parse_idx(data, str(candidates[0]))
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InvalidDataset(
            f"{candidates[0]} is not Fashion-MNIST's {name}: its decompressed SHA-256 is {found[:12]}… instead of "
            f"{sha256[:12]}…. Replace the file. MNIST's own files have the same names."
        )
    return values


def has_fashion_mnist(folder: Path) -> bool:
    """Return whether a folder contains any of the four files, plain or gzipped."""
    return any((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in FASHION_MNIST_SHA256)
