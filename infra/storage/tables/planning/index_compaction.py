"""Compact the index of planned files: replace the plans of some batches, and smaller segments, by one segment.

The planner calls `compact_index` after it has its own batch. Until then nobody needs the new segment, and everything
works without it, only slower.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage.keys import plan_key
from infra.storage.object_store import ObjectStore
from infra.storage.tables.planning.batches import FOOTER, Catalog, NumberedBatch, SegmentFooter, options_by_model
from infra.storage.tables.planning.index import INDEX_SCHEMA, SegmentRange, aligned_ranges
from infra.storage.tables.planning.plan import CHUNK_ROWS, local_files, rechunked
from infra.storage.tables.planning.staged_inputs import literal, query

_log = logging.getLogger(__name__)

_MERGED_AT_ONCE = 16
_MERGE_ROWS = 8_192
"""Rows of each file that a merge holds in memory."""
_SORTED = "sorted.parquet"
_ORDER = ("model_version", "uri", "number")


def compact_index(store: ObjectStore, catalog: Catalog, scratch: Path) -> None:
    """Write the segments that the index should have by now. An error is logged, because a run doesn't need them.

    Args:
        store: store of the table.
        catalog: batches of the table.
        scratch: folder for temporary files.
    """
    try:
        current = {segment.range for segment in catalog.segments} - catalog.stale
        for wanted in aligned_ranges(catalog.next_number - 1):
            if wanted not in current:
                _write_segment(store, catalog, wanted, scratch)
    except Exception:  # noqa: BLE001 (whatever it is, the run can do without the segment)
        _log.warning("The index of table %s wasn't compacted. The next run tries again.", catalog.table, exc_info=True)


def _write_segment(store: ObjectStore, catalog: Catalog, wanted: SegmentRange, scratch: Path) -> None:
    segments = [segment for segment in catalog.segments if wanted.covers(segment.range)]
    tail = [entry for entry in catalog.tail if wanted.first <= entry.number <= wanted.last]
    footer = SegmentFooter(
        first=wanted.first,
        last=wanted.last,
        options=options_by_model(segments, tail),
        unfinished=[entry for entry in catalog.unfinished if wanted.first <= entry.number <= wanted.last],
        table_version=catalog.table_version,
    )
    files = local_files(store, [segment.range.key(catalog.table) for segment in segments], scratch)
    made = []
    for entry, plan in zip(tail, _plans(store, catalog.table, tail, scratch), strict=True):
        made.append(scratch / f"index-{entry.number}.parquet")
        _write(made[-1], _rows_of_plan(plan, entry, scratch))
    merged = scratch / "segment.parquet"
    _merge([*files, *made], merged, {FOOTER: footer.model_dump_json()})
    with store.publish(wanted.key(catalog.table)) as stream, merged.open("rb") as written:
        while block := written.read(2**20):
            stream.write(block)
    for path in (merged, scratch / _SORTED, *made):
        path.unlink(missing_ok=True)


def _plans(store: ObjectStore, table: str, entries: Sequence[NumberedBatch], scratch: Path) -> list[Path]:
    return local_files(store, [plan_key(table, entry.batch) for entry in entries], scratch)


def _rows_of_plan(plan: Path, entry: NumberedBatch, scratch: Path) -> Iterator[pa.RecordBatch]:
    """Return one row of `INDEX_SCHEMA` for each file of a plan."""
    if not _is_sorted(plan):  # plans that were upgraded, because canonical URIs sort differently
        unsorted, plan = plan, scratch / _SORTED
        query(
            f"COPY (SELECT uri, fingerprint, rows FROM plan ORDER BY uri, fingerprint) TO {literal(str(plan))} "  # noqa: S608 (our own paths)
            f"(FORMAT parquet, COMPRESSION lz4_raw)",
            {"plan": [unsorted]},
            scratch,
        )
    for uri, fingerprint, images in _files_of_pieces(plan):
        version = pa.repeat(pa.scalar(entry.model_version), len(uri))
        number = pa.repeat(pa.scalar(entry.number, pa.int64()), len(uri))
        yield pa.record_batch([version, uri, fingerprint, number, images], schema=INDEX_SCHEMA)


def _files_of_pieces(plan: Path) -> Iterator[tuple[pa.Array, pa.Array, pa.Array]]:
    """Return URI, fingerprint and number of images of each file, whose pieces follow each other in the plan."""
    held: pa.RecordBatch | None = None
    with pq.ParquetFile(plan) as file:
        for batch in file.iter_batches(CHUNK_ROWS, columns=["uri", "fingerprint", "rows"]):
            pieces = pa.concat_batches([held, batch]) if held else batch
            starts = np.flatnonzero(_is_first(pieces.column("uri")) | _is_first(pieces.column("fingerprint")))
            images = np.add.reduceat(pieces.column("rows").to_numpy(), starts)
            uris, fingerprints, _ = pieces.take(pa.array(starts)).columns
            files = pa.record_batch([uris, fingerprints, pa.array(images)], schema=pieces.schema)
            # The last file may have more pieces in the next batch.
            yield tuple(files.slice(0, len(files) - 1).columns)
            held = files.slice(len(files) - 1)
    if held:
        yield tuple(held.columns)


def _is_first(values: pa.Array) -> Any:
    first = np.ones(len(values), bool)
    first[1:] = np.asarray(pc.not_equal(values[1:], values[:-1]))
    return first


def _is_sorted(plan: Path) -> bool:
    last = ""
    with pq.ParquetFile(plan) as file:
        for batch in file.iter_batches(CHUNK_ROWS, columns=["uri"]):
            uris = batch.column("uri")
            if uris[0].as_py() < last or not pc.all(pc.less_equal(uris[:-1], uris[1:]), min_count=0).as_py():
                return False
            last = uris[-1].as_py()
    return True


def _merge(files: Sequence[Path], merged: Path, metadata: dict[bytes, str]) -> None:
    """Merge sorted files of `INDEX_SCHEMA`. Memory doesn't grow with their number or size."""
    if len(files) > _MERGED_AT_ONCE:
        groups = []
        for first in range(0, len(files), _MERGED_AT_ONCE):
            groups.append(merged.with_name(f"{len(files)}-{first}-{merged.name}"))
            _merge(files[first : first + _MERGED_AT_ONCE], groups[-1], {})
        _merge(groups, merged, metadata)
        for path in groups:
            path.unlink()
    else:
        _write(merged, _merged_rows(files), metadata)


def _merged_rows(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    sources = [_chunks(path) for path in files]
    heads = {number: chunk for number, source in enumerate(sources) if (chunk := next(source, None)) is not None}
    while heads:
        # No source has rows up to this one that aren't in memory yet.
        bound = min(tuple(chunk.column(name)[-1].as_py() for name in _ORDER) for chunk in heads.values())
        taken = []
        for number, chunk in list(heads.items()):
            count = _rows_up_to(chunk, bound)
            taken.append(chunk.slice(0, count))
            rest = chunk.slice(count) if count < len(chunk) else next(sources[number], None)
            if rest is None:
                del heads[number]
            else:
                heads[number] = rest
        rows = pa.Table.from_batches(taken).combine_chunks()
        yield from rows.sort_by([(name, "ascending") for name in _ORDER]).combine_chunks().to_batches()


def _chunks(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(_MERGE_ROWS)


def _rows_up_to(rows: pa.RecordBatch, bound: tuple[Any, ...]) -> int:
    """Return how many sorted rows are not greater than a row."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if tuple(rows.column(name)[middle].as_py() for name in _ORDER) <= bound:
            low = middle + 1
        else:
            high = middle
    return low


def _write(path: Path, rows: Iterator[pa.RecordBatch], metadata: dict[bytes, str] | None = None) -> None:
    with pq.ParquetWriter(path, INDEX_SCHEMA, compression="zstd") as writer:
        for chunk in rechunked(rows):
            writer.write_batch(chunk.cast(INDEX_SCHEMA))
        writer.add_key_value_metadata({key.decode(): value for key, value in (metadata or {}).items()})
