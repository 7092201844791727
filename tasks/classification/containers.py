"""Containers: open one with its labels, and cut it into pieces."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from fmnist_model.errors import NoImages
from fmnist_model.formats import pieces
from fmnist_model.formats.idx_images import label_file_name
from fmnist_model.formats.interface import ContainerPiece
from infra.storage.input_files import InputFile, InputUnreadable, open_input, stat_input
from infra.storage.tables.planning.plan import Piece
from infra.storage.tables.planning.staged_inputs import WITH_LABELS
from tasks.classification.listed_file import ListedFile, path_or_uri
from tasks.classification.options import ReadOptions
from tasks.classification.passed_over import PassedOver
from tasks.classification.reading_errors import first_cause, reason_of

if TYPE_CHECKING:
    from fmnist_model.formats import ContainerKind

_PIECE_IMAGES, _PIECE_BYTES = 20_000, 256 * 2**20
"""Approximate size of a piece of a container: whichever is reached first."""
_NAMES = {"parquet": "Parquet", "tar": "tar", "idx": "IDX"}
_DOWNLOAD_BYTES = 8 * 2**20
"""Largest container on S3 to download as a whole. A request takes about as long as transferring this many bytes."""


@contextmanager
def open_container(uri: str, kind: str, *, download: bool = False) -> Iterator[tuple[Any, Any | None]]:
    """Open a container, and the file with its labels if it has one.

    Args:
        uri: URI of the container.
        kind: kind of container.
        download: whether to download a small container from S3 in one request. Use it to read images, not to read the
            footer alone.

    Yields:
        The container and its labels, as random-access `pyarrow.NativeFile`. The second is None without a label file.

    Raises:
        InputUnreadable: the file is gone, or reading it isn't permitted.
        InputsUnavailable: S3 or this machine fails.
    """
    with ExitStack() as opened:
        labels = _label_file(uri) if kind == "idx" else None
        file = opened.enter_context(open_input(uri, fetch=_DOWNLOAD_BYTES if download else 0))
        yield file, opened.enter_context(open_input(labels.uri)) if labels else None


def cut_container(file: ListedFile, options: ReadOptions, passed_over: PassedOver) -> pa.RecordBatch:
    """Cut a container into pieces, as rows of `PIECE_SCHEMA`.

    An unreadable one becomes one piece with one image. One without images is passed over.

    Raises:
        RequestError, JobError: the store, the account or this machine is to blame.
    """
    kind = file.kind
    try:
        found = list(container_pieces(file, options))
    except NoImages:
        found = []
    except Exception as error:  # noqa: BLE001 (one container must not stop the others)
        reason_of(error, file.uri)  # raises if the container isn't to blame. Reading it finds the reason again.
        kind, found = "unreadable", [ContainerPiece(0, 1, 0, 0)]
    if not found:
        passed_over.add(f"{_NAMES[file.kind]} file without images", path_or_uri(file.uri))
    return Piece.to_arrow(
        Piece(file.uri, file.fingerprint, kind, piece.first_row, piece.rows, piece.offset, piece.size)
        for piece in found
    )


def container_pieces(file: ListedFile, options: ReadOptions) -> Iterator[ContainerPiece]:
    """Cut a container into pieces.

    Raises:
        InputUnreadable: the file is gone, or reading it isn't permitted.
        NoImages: the file can be read, but holds no images.
        InvalidDataset: the container is damaged.
        InputsUnavailable: S3 or this machine fails.
    """
    files: tuple[Any, ...] = ()
    try:
        with open_container(file.uri, file.kind) as files:
            yield from pieces(
                cast("ContainerKind", file.kind),
                files[0],
                file.uri,
                target_rows=_PIECE_IMAGES,
                target_bytes=_PIECE_BYTES,
                image_column=options.image_column,
                label_column=options.label_column,
                labels=files[1],
            )
    except Exception as error:  # noqa: BLE001 (the cause is raised)
        raise first_cause(error, files) from None


def planned_fingerprint(file: InputFile, kind: str) -> str:
    """Return the fingerprint of a file as it is planned. That of an IDX file includes its label file's.

    So the images get their labels when the label file appears or changes.

    Raises:
        InputsUnavailable: S3 or this machine fails.
    """
    if kind != "idx":
        return file.fingerprint
    labels = None
    with suppress(InputUnreadable):  # reading the images reports it
        labels = _label_file(file.uri)
    return f"{file.fingerprint}{WITH_LABELS}{labels.fingerprint if labels else ''}"


def _label_file(uri: str) -> InputFile | None:
    folder, _, name = uri.rpartition("/")
    labels = label_file_name(name)
    if labels is None:
        return None
    # One of the two files may be gzipped, and the other not.
    other = labels.removesuffix(".gz") if labels.endswith(".gz") else f"{labels}.gz"
    found = (stat_input(f"{folder}/{candidate}") for candidate in (labels, other))
    return next((file for file in found if file), None)
