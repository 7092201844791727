"""Make numbered batches with plans, without classifying anything."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from infra.storage.keys import part_name, table_folder
from infra.storage.object_store import ObjectStore
from infra.storage.tables.delta import ensure_delta
from infra.storage.tables.parts import PartFile
from infra.storage.tables.planning.batches import NumberedBatch, take_number
from infra.storage.tables.planning.plan import Piece, cut_into_shards, write_plan
from tasks.classification.options import ReadOptions

OPTIONS = ReadOptions().to_record()


def add_batch(
    store: ObjectStore, number: int, files: Iterable[tuple[str, str, int]], scratch: Path, *, version: str = "1"
) -> NumberedBatch:
    """Plan a batch of files, each with URI, fingerprint and number of images, and give it a number."""
    pieces = Piece.to_arrow(
        Piece(uri, fingerprint, "tar", first_row=0, rows=rows, offset=0, size=0) for uri, fingerprint, rows in files
    )
    plan = write_plan(
        store,
        table="t",
        number=number,
        model_version=version,
        options=OPTIONS,
        inputs=cut_into_shards([pieces], 1e9),
        superseded=0,
        scratch=scratch,
    )
    entry = NumberedBatch(number=number, batch=plan.batch, model_version=version, options=OPTIONS)
    take_number(store, "t", entry)
    return entry


def add_batches(store: ObjectStore, numbers: Iterable[int], scratch: Path) -> list[NumberedBatch]:
    """Plan batches of one file each, `file:///<number>.tar` with as many images as its number."""
    return [add_batch(store, number, [(f"file:///{number:05d}.tar", "1", number)], scratch) for number in numbers]


def commit_batches(store: ObjectStore, batches: Iterable[NumberedBatch], *, rows: bool = False) -> None:
    """Commit batches, with a part or without rows. Planners look for the transactions and the batches of the parts."""
    schema = pa.schema([pa.field("image", pa.string())])
    table = ensure_delta(store, table_folder("t"), schema, name="t", description="")
    assert table.add({entry.batch: [_part(entry)] if rows else [] for entry in batches})


def _part(entry: NumberedBatch) -> PartFile:
    name = part_name(entry.batch, 0, "attempt")
    return PartFile(name=name, size=1, sha256="", etag="", rows=1, statistics='{"numRecords": 1}')
