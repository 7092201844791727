"""Read container files, which hold many images: Parquet, WebDataset tars and IDX.

Planning cuts a container into pieces, and workers read it piece by piece. Each format is a module with the functions
`pieces` and `read`. They take a random-access `pyarrow.NativeFile`, local or in an object store.
"""

from collections.abc import Iterator
from typing import Any, Literal

from fmnist_model.formats import idx_images, parquet, tar
from fmnist_model.formats.interface import ContainerPiece, ImageBatch

ContainerKind = Literal["parquet", "tar", "idx"]

_ENDINGS: dict[ContainerKind, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tbz"),
    "idx": ("idx3-ubyte", "idx3-ubyte.gz", ".idx", ".idx.gz", ".idx3", ".idx3.gz"),
}


def container_kind(name: str) -> ContainerKind | None:
    """Return the container format of a file by its name, path or URI, or None if it isn't a container.

    IDX files of labels aren't containers. A Parquet file may turn out to be a list of images (`lists.is_parquet_list`).
    """
    file_name = name.lower().rpartition("/")[2]
    if file_name.endswith((".idx", ".idx.gz")) and "label" in file_name and "image" not in file_name:
        return None
    return next((kind for kind, endings in _ENDINGS.items() if file_name.endswith(endings)), None)


def pieces(
    kind: ContainerKind,
    file: Any,
    origin: str,
    *,
    target_rows: int,
    target_bytes: int,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: Any | None = None,
) -> Iterator[ContainerPiece]:
    """Cut a container into pieces of consecutive images. A container without images has no pieces.

    Args:
        kind: format of the container.
        file: random-access `pyarrow.NativeFile` of the container.
        origin: URI of the container, for error messages.
        target_rows: approximate number of images per piece.
        target_bytes: approximate number of bytes per piece.
        image_column: for Parquet, the column with the images. By default it is found by name and type.
        label_column: for Parquet, the column with the labels. By default it is found by name and type, and may be
            absent.
        labels: for IDX, a `pyarrow.NativeFile` of the labels (see `idx_images.label_file_name`).

    Raises:
        InvalidDataset: the container can't be read, or lacks a column.
        ValueError: a target is less than 1.
    """
    if target_rows < 1 or target_bytes < 1:
        raise ValueError(f"target_rows={target_rows} and target_bytes={target_bytes} must be at least 1.")
    if kind == "parquet":
        yield from parquet.pieces(
            file,
            origin,
            target_rows=target_rows,
            target_bytes=target_bytes,
            image_column=image_column,
            label_column=label_column,
        )
    elif kind == "tar":
        yield from tar.pieces(file, origin, target_rows=target_rows, target_bytes=target_bytes)
    else:
        yield from idx_images.pieces(file, origin, target_rows=target_rows, target_bytes=target_bytes, labels=labels)


def read(
    kind: ContainerKind,
    file: Any,
    origin: str,
    piece: ContainerPiece,
    *,
    batch_rows: int,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: Any | None = None,
) -> Iterator[ImageBatch]:
    """Read the images of a piece in container order, in batches of limited size.

    Args:
        kind: format of the container.
        file: random-access `pyarrow.NativeFile` of the container.
        origin: URI of the container, for error messages.
        piece: a piece from `pieces`, which must have been called with the same columns and labels.
        batch_rows: maximum number of images per batch. A batch ends early when it reaches 64 MiB.
        image_column: see `pieces`.
        label_column: see `pieces`.
        labels: see `pieces`.

    Raises:
        InvalidDataset: the container is damaged, or has changed since it was cut into pieces.
    """
    if kind == "parquet":
        yield from parquet.read(
            file, origin, piece, batch_rows=batch_rows, image_column=image_column, label_column=label_column
        )
    elif kind == "tar":
        yield from tar.read(file, origin, piece, batch_rows=batch_rows)
    else:
        yield from idx_images.read(file, origin, piece, batch_rows=batch_rows, labels=labels)
