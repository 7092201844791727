"""Container files: many images in one file, cut into pieces when work is planned, and read by piece when it is done.

Each kind is a module of functions over a random-access `pyarrow.NativeFile`, local or in an object store.
"""

from collections.abc import Iterator
from typing import Any, Literal

from fmnist_model.formats import idx_images, parquet, tar
from fmnist_model.formats.interface import ContainerPiece, ImageBatch

ContainerKind = Literal["parquet", "tar", "idx"]

_ENDINGS: dict[ContainerKind, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "tar": (".tar", ".tar.gz", ".tgz"),
    "idx": ("idx3-ubyte", "idx3-ubyte.gz", ".idx", ".idx.gz", ".idx3", ".idx3.gz"),
}


def container_kind(name: str) -> ContainerKind | None:
    """What a file of that name, path or URI holds its images in; None where it is no container.

    A Parquet file may be a list of images instead (`uri_list.is_uri_list`). A file of labels is no container.
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
    """Cut a container into pieces of about so many images and bytes, in its order; none where it has no images.

    Args:
        kind: of the container.
        file: a random-access `pyarrow.NativeFile`.
        origin: its URI, for messages.
        target_rows: images in a piece, about.
        target_bytes: bytes in a piece, about.
        image_column: of Parquet; found by name and type where it is not given.
        label_column: of Parquet; likewise, and may be missing then.
        labels: for IDX, the file of labels (`idx_images.label_file_name`).

    Raises:
        InvalidDataset: the container can't be read, or holds no such columns.
    """
    if target_rows < 1 or target_bytes < 1:
        raise ValueError(f"a piece can't have {target_rows} images and {target_bytes} bytes")
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
    """Read a piece's images in their order, at most so many at a time, and fewer where 64 MiB are reached before.

    Args: as those of `pieces`, which must have been the same for the piece.

    Raises:
        InvalidDataset: the container is damaged, or not the one that was cut into pieces.
    """
    if kind == "parquet":
        yield from parquet.read(
            file, origin, piece, batch_rows=batch_rows, image_column=image_column, label_column=label_column
        )
    elif kind == "tar":
        yield from tar.read(file, origin, piece, batch_rows=batch_rows)
    else:
        yield from idx_images.read(file, origin, piece, batch_rows=batch_rows, labels=labels)
