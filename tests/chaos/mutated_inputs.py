"""Make image files, containers and lists, and damage them at random."""

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tests.unit.tasks.classification.image_inputs import encode_idx, save_tar

_FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
_MODES = {"png": ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"), "tiff": ("L", "RGB", "RGBA", "I;16", "F", "CMYK")}
_SIZES = ((28, 28), (28, 28), (1, 1), (31, 17), (200, 90), (640, 480))


@dataclass(frozen=True)
class MutatedInputs:
    """A folder of inputs, of which most are damaged."""

    folder: Path
    """Holds `loose/`, `containers/` and `lists/`."""
    intact: dict[str, bytes]
    """Content by path, for each loose image that was left as it was."""
    images: int
    """Number of images that were put into files."""


def make_inputs(folder: Path, seed: int, *, loose: int, containers: int) -> MutatedInputs:
    """Make inputs and damage most of them.

    Args:
        folder: an empty folder.
        seed: seed of everything that is random.
        loose: number of loose image files.
        containers: number of containers of each kind, with up to 40 images each.
    """
    random = Random(seed)
    for name in ("loose", "containers", "lists"):
        (folder / name).mkdir(parents=True)
    intact: dict[str, bytes] = {}
    paths = []
    for number in range(loose):
        suffix = random.choice(list(_FORMATS))
        path = folder / "loose" / f"{number:05d}.{suffix}"
        data = encode_picture(random, suffix)
        changed = data if random.random() < 0.2 else damage(random, data)
        if changed == data:
            intact[str(path)] = data
        path.write_bytes(changed)
        paths.append(path)
    images = loose
    for number in range(containers):
        for name, make in _CONTAINERS.items():
            path = folder / "containers" / name.format(number)
            images += make(random, path)
            if random.random() < 0.7:
                path.write_bytes(damage(random, path.read_bytes()))
        for name, make_list in _LISTS.items():
            data = make_list(random.sample(paths, min(len(paths), 20)))
            changed = damage(random, data) if random.random() < 0.7 else data
            (folder / "lists" / name.format(number)).write_bytes(changed)
    return MutatedInputs(folder, intact, images)


def encode_picture(random: Random, suffix: str) -> bytes:
    """Encode a random picture in one of the modes and sizes that its format allows."""
    mode = random.choice(_MODES.get(suffix, ("L", "RGB")))
    width, height = random.choice(_SIZES)
    pixels = np.random.default_rng(random.getrandbits(32))
    if mode == "I;16":
        picture = Image.fromarray(pixels.integers(0, 65536, (height, width), dtype=np.uint16))
    elif mode == "F":
        picture = Image.fromarray(pixels.random((height, width), dtype=np.float32))
    else:
        picture = Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    options = {}
    if suffix in ("jpg", "webp", "tiff") and random.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = random.randrange(12)
        options["exif"] = exif
    buffer = io.BytesIO()
    picture.save(buffer, _FORMATS[suffix], **options)
    return buffer.getvalue()


def damage(random: Random, data: bytes) -> bytes:
    """Damage a file in up to three places."""
    for _ in range(random.randint(1, 3)):
        data = random.choice(_DAMAGES)(random, bytearray(data))
    return data


def _flip(random: Random, data: bytearray) -> bytes:
    for _ in range(random.choice((1, 1, 4, 64))):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def _flip_in_header(random: Random, data: bytearray) -> bytes:
    if data:
        data[random.randrange(min(len(data), 64))] = random.randrange(256)
    return bytes(data)


def _flip_in_footer(random: Random, data: bytearray) -> bytes:
    if data:
        data[-1 - random.randrange(min(len(data), 200))] = random.randrange(256)
    return bytes(data)


def _cut(random: Random, data: bytearray) -> bytes:
    return bytes(data[: random.randrange(len(data) + 1)])


def _remove(random: Random, data: bytearray) -> bytes:
    start = random.randrange(len(data) + 1)
    del data[start : start + random.choice((1, 4, 512))]
    return bytes(data)


def _insert(random: Random, data: bytearray) -> bytes:
    start = random.randrange(len(data) + 1)
    data[start:start] = random.randbytes(random.choice((1, 4, 512)))
    return bytes(data)


def _largest_number(random: Random, data: bytearray) -> bytes:
    """Put a number at an end of its range where a length or an offset may be."""
    start = random.randrange(len(data) + 1)
    data[start : start + 4] = random.choice(
        (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0")
    )
    return bytes(data)


def _repeat(random: Random, data: bytearray) -> bytes:
    start = random.randrange(len(data) + 1)
    end = random.randrange(start, min(len(data), start + 4096) + 1)
    return bytes(data[:end] + data[start:])


_DAMAGES: list[Callable[[Random, bytearray], bytes]] = [
    _flip,
    _flip_in_header,
    _flip_in_footer,
    _cut,
    _remove,
    _insert,
    _largest_number,
    _repeat,
]


def _pictures(random: Random) -> list[bytes]:
    suffix = random.choice(("png", "png", "jpg", "gif"))
    pictures = [encode_picture(random, suffix) for _ in range(random.randint(1, 40))]
    return [damage(random, picture) if random.random() < 0.1 else picture for picture in pictures]


def _make_tar(random: Random, path: Path) -> int:
    pictures = _pictures(random)
    members = [
        member
        for number, picture in enumerate(pictures)
        for member in ((f"{number:04d}.png", picture), (f"{number:04d}.cls", str(number % 10).encode()))
    ]
    save_tar(path, members)
    return len(pictures)


def _make_parquet(random: Random, path: Path) -> int:
    pictures = _pictures(random)
    table = pa.table({"image": pa.array(pictures, pa.binary()), "label": [n % 10 for n in range(len(pictures))]})
    pq.write_table(
        table,
        path,
        row_group_size=random.choice((1, 7, 1000)),
        compression=random.choice(("none", "snappy", "zstd", "gzip")),
        use_dictionary=random.random() < 0.5,
    )
    return len(pictures)


def _make_idx(random: Random, path: Path) -> int:
    path.write_bytes(encode_idx(_raw_pixels(random)))
    return 20


def _make_zipped_idx(random: Random, path: Path) -> int:
    path.write_bytes(gzip.compress(encode_idx(_raw_pixels(random))))
    return 20


def _raw_pixels(random: Random) -> NDArray[np.uint8]:
    return np.random.default_rng(random.getrandbits(32)).integers(0, 256, (20, 28, 28), dtype=np.uint8)


_CONTAINERS: dict[str, Callable[[Random, Path], int]] = {
    "{:03d}.tar": _make_tar,
    "{:03d}.parquet": _make_parquet,
    "{:03d}-images-idx3-ubyte": _make_idx,
    "{:03d}-images-idx3-ubyte.gz": _make_zipped_idx,
}


def _lines_of(paths: list[Path], line: str, encoding: str = "utf-8") -> bytes:
    return "".join(f"{line.format(path)}\n" for path in paths).encode(encoding)


def _parquet_list(paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    hashes = pa.array([b"\1" * 32] * len(paths), pa.binary())
    pq.write_table(pa.table({"path": list(map(str, paths)), "sha256": hashes, "label": [3] * len(paths)}), buffer)
    return buffer.getvalue()


_LISTS: dict[str, Callable[[list[Path]], bytes]] = {
    "{}.txt": lambda paths: _lines_of(paths, "{}"),
    "{}-labels.txt": lambda paths: _lines_of(paths, '"{}" 3'),
    "{}-utf16.txt": lambda paths: _lines_of(paths, "{}", "utf-16"),
    "{}.lst": lambda paths: _lines_of(paths, "17\t3.0\t{}"),
    "{}.csv": lambda paths: b"path,label\n" + _lines_of(paths, '"{}",3'),
    "{}.tsv": lambda paths: b"id\tFile Name\ty\n" + _lines_of(paths, "1\t{}\tBag"),
    "{}.jsonl": lambda paths: _lines_of(paths, '{{"path": "{}", "label": 3}}'),
    "{}.parquet": _parquet_list,
}
