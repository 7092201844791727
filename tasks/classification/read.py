"""Read a shard's images: loose files many at once, containers as streams. What can't be read is told, and not fatal."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fmnist_model.errors import InvalidDataset, describe_unexpected
from fmnist_model.formats import container_kind, pieces, read
from fmnist_model.formats.interface import ContainerPiece, row_fragments
from infra.errors import RequestError
from infra.storage.input_files import InputUnreadable, read_input, stat_input
from tasks.classification.inputs import open_container
from tasks.classification.options import ReadOptions

BATCH_IMAGES = 4096
"""Read, decoded and classified at a time."""
_BATCH_BYTES = 64 * 2**20
_LARGEST_FILE = 256 * 2**20
"""Bytes; a larger file is no picture of 64 megapixels, which is the most that is decoded."""
_READS_IN_FLIGHT = 16
_FILES_A_READ = 32
"""Handed to a thread at a time, where files are near: a hand-over costs as much as reading one."""

_STORE_FAILURES = (RequestError, OSError)
"""Failures of a store or machine, which may be temporary: the shard fails and is retried."""


@dataclass(frozen=True)
class ReadImages:
    """Images as they were read."""

    images: pa.StringArray
    """Their URIs."""
    encoded: pa.Array
    """As `decode_images` takes them, null where there is nothing to decode."""
    labels: pa.Int8Array
    """Null where unknown."""
    reasons: dict[int, str] = field(default_factory=dict)
    """By row: why an image could not be read."""


def read_shard(inputs: pa.Table, options: ReadOptions) -> Iterator[ReadImages]:
    """Read a shard's images in the order of its plan, exactly as many as were planned.

    Args:
        inputs: by `PLAN_SCHEMA`.
        options: with which they were planned.

    Raises:
        RequestError: the store does not answer.
    """
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as threads:
        for kind, pieces in _runs(inputs):
            if kind == "image":
                for some in _small_enough(pieces):
                    yield _read_files(some, threads)
            else:
                for piece in pieces.to_pylist():
                    yield from _read_container(piece, options)


def _runs(inputs: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Consecutive pieces of one kind."""
    kinds = inputs.column("kind").combine_chunks()
    changes = 1 + np.flatnonzero(np.asarray(pc.not_equal(kinds[1:], kinds[:-1])))
    bounds = [0, *changes.tolist(), len(inputs)]
    for begin, end in pairwise(bounds):
        yield kinds[begin].as_py(), inputs.slice(begin, end - begin)


def _small_enough(files: pa.Table) -> Iterator[pa.Table]:
    """Cut loose files into batches that fit into memory."""
    sizes = np.minimum(files.column("size").to_numpy(), _LARGEST_FILE)
    begin = 0
    while begin < len(files):
        held = np.cumsum(sizes[begin : begin + BATCH_IMAGES])
        count = max(1, int(np.searchsorted(held, _BATCH_BYTES, side="right")))
        yield files.slice(begin, count)
        begin += count


def _read_files(files: pa.Table, threads: ThreadPoolExecutor) -> ReadImages:
    uris, fingerprints = files.column("uri").to_pylist(), files.column("fingerprint").to_pylist()
    a_read = 1 if uris[0].startswith("s3://") else _FILES_A_READ
    chunks = [slice(first, first + a_read) for first in range(0, len(uris), a_read)]
    contents: list[bytes | None] = []
    reasons: dict[int, str] = {}
    for chunk in threads.map(lambda chosen: _read_some(uris[chosen], fingerprints[chosen]), chunks):
        for content in chunk:
            if isinstance(content, str):
                reasons[len(contents)] = content
            contents.append(content if isinstance(content, bytes) else None)
    labels = files.column("label").combine_chunks()
    return ReadImages(files.column("uri").combine_chunks(), pa.array(contents, pa.binary()), labels, reasons)


def _read_some(uris: list[str], fingerprints: list[str]) -> list[bytes | str]:
    """The bytes of each file, or why they can't be had."""
    found: list[bytes | str] = []
    for uri, fingerprint in zip(uris, fingerprints, strict=True):
        try:
            found.append(read_input(uri, fingerprint, _LARGEST_FILE))
        except InputUnreadable as reason:
            found.append(str(reason))
        except _STORE_FAILURES:
            raise
        except Exception as error:  # noqa: BLE001 (one file must not stop the others)
            found.append(describe_unexpected(error))
    return found


def _read_container(piece: dict[str, Any], options: ReadOptions) -> Iterator[ReadImages]:
    """A piece of a container; what of it can't be read is told row by row."""
    uri, rows = piece["uri"], 0
    try:
        if piece["kind"] == "unreadable":
            raise InputUnreadable(_why_unreadable(uri, options))
        check_version(piece)
        with open_container(uri, piece["kind"], to_read=True) as opened:
            for batch in container_batches(opened, piece, options):
                if len(batch.images) > piece["rows"] - rows:
                    raise InputUnreadable(_CHANGED)
                yield batch
                rows += len(batch.images)
    except _STORE_FAILURES:
        raise
    except Exception as error:  # noqa: BLE001 (one file must not stop the others)
        reason = _reason(error, uri)
        if piece["kind"] == "unreadable":  # of which it is not known what it holds
            yield _unreadable(pa.array([uri], pa.string()), reason)
            return
        for first in range(rows, piece["rows"], BATCH_IMAGES):
            fragments = row_fragments(piece["first_row"] + first, min(BATCH_IMAGES, piece["rows"] - first))
            yield _unreadable(pc.binary_join_element_wise(pa.scalar(uri), fragments, ""), reason)


def _reason(error: Exception, uri: str) -> str:
    """Describe why a container can't be read, as a reason for quarantine."""
    if isinstance(error, InputUnreadable):
        return str(error)
    if isinstance(error, InvalidDataset):
        return f"damaged: {str(error).removeprefix(f'{uri}: ')}"
    return describe_unexpected(error)


def container_batches(opened: tuple[Any, Any], piece: dict[str, Any], options: ReadOptions) -> Iterator[ReadImages]:
    """Read a piece of a container that `open_container` opened.

    Raises:
        InvalidDataset: it is damaged.
    """
    file, labels = opened
    uri = piece["uri"]
    wanted = ContainerPiece(piece["first_row"], piece["rows"], piece["offset"], piece["size"])
    for batch in read(
        piece["kind"],
        file,
        uri,
        wanted,
        batch_rows=BATCH_IMAGES,
        image_column=options.image_column,
        label_column=options.label_column,
        labels=labels,
    ):
        images = pc.binary_join_element_wise(pa.scalar(uri), batch.fragments, "")
        yield ReadImages(images, batch.encoded, batch.labels)


def _unreadable(images: pa.StringArray, reason: str) -> ReadImages:
    count = len(images)
    reasons = dict.fromkeys(range(count), reason)
    return ReadImages(images, pa.nulls(count, pa.binary()), pa.nulls(count, pa.int8()), reasons)


_CHANGED = "changed: it is not the file that was planned; the next run classifies it"


def check_version(piece: dict[str, Any]) -> None:
    """Make sure that a file is the one that was planned.

    Raises:
        InputUnreadable: it is gone, or was changed since.
    """
    found = stat_input(piece["uri"])
    if found is None:
        raise InputUnreadable("vanished: there is no such file")
    if found.fingerprint != piece["fingerprint"]:
        raise InputUnreadable(_CHANGED)


def _why_unreadable(uri: str, options: ReadOptions) -> str:
    kind = container_kind(uri)
    try:
        if kind is not None:
            with open_container(uri, kind) as (file, labels):
                columns = {"image_column": options.image_column, "label_column": options.label_column}
                for _ in pieces(kind, file, uri, target_rows=1, target_bytes=2**30, labels=labels, **columns):
                    pass
    except InvalidDataset as error:
        return f"unreadable: {error}"
    except InputUnreadable as reason:
        return str(reason)
    return "changed: it could not be read when the batch was planned"
