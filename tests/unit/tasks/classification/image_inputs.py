"""Make image files, containers of images, and plans for tests."""

import io
import os
import struct
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fmnist_model.images.decode import encode_png
from infra.provenance import Provenance
from infra.storage.model_registry import ModelVersion
from infra.storage.tables.planning.plan import Piece, cut_into_shards
from infra.storage.tables.planning.staged_inputs import PlannedFiles, StagedInputs
from tasks.classification.inputs import list_files, pieces_of
from tasks.classification.options import ReadOptions

OPTIONS = ReadOptions()


def picture(number: int) -> NDArray[np.uint8]:
    """Make a 28x28 picture that differs from those of other numbers."""
    return np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)


def png(number: int) -> bytes:
    """Encode a picture as PNG."""
    return encode_png(picture(number))


def save_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, by relative path."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def touch(folder: Path, *names: str) -> None:
    """Write empty files."""
    save_files(folder, dict.fromkeys(names, b""))


def save_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar with these members, by name and content."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def encode_idx(values: NDArray[np.uint8]) -> bytes:
    """Encode an array as an IDX file."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def save_parquet(
    path: Path, images: Sequence[bytes | None], labels: Sequence[int | None] | None = None, *, group: int = 1000
) -> Path:
    """Write a Parquet file with image files in the column `image` and, if given, labels in the column `label`."""
    columns = {"image": pa.array(images, pa.binary())}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def plan_of(*locations: str | Path, options: ReadOptions = OPTIONS) -> pa.Table:
    """Plan one shard with all images of the inputs."""
    with TemporaryDirectory() as scratch:
        staged = StagedInputs(Path(scratch))
        staged.stage(list_files([str(location) for location in locations], options))
        new_files = staged.compare(PlannedFiles("1")).new_files()
        return pa.Table.from_batches(list(cut_into_shards(pieces_of(new_files, options), 1e18)))


def model_version(number: int) -> ModelVersion:
    """Make the record of a model version without a checkpoint."""
    return ModelVersion(
        name="fashion-mnist",
        version=number,
        run_id="run",
        epoch=1,
        weights_sha256="0" * 64,
        metrics={},
        parameters={},
        data_version="tests",
        provenance=Provenance.now(),
    )


def loose(count: int, *, size: int = 0, first: int = 0) -> pa.RecordBatch:
    """Make pieces for `count` image files, like `pieces_of` does."""
    return Piece.to_arrow(
        Piece(f"file:///{number:09d}.png", f"{number}", "image", first_row=0, rows=1, offset=0, size=size)
        for number in range(first, first + count)
    )


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run the block without root's permissions, because root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
