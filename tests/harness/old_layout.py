"""Write prediction tables in the layout of before Delta Lake, as the code of that time did."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fmnist_model.classes import CLASS_NAMES
from infra.provenance import Provenance
from infra.storage.input_files import local_fingerprint
from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import ObjectStore
from tasks.classification.options import ReadOptions

_PLAN = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("label", pa.int8()),
    ]
)
_PREDICTIONS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("predicted_class", pa.int8(), nullable=False),
        pa.field("predicted_label", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32(), len(CLASS_NAMES)), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("model_version", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)
_QUARANTINE = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
    ]
)


@dataclass(frozen=True)
class OldTable:
    """A table to which batches of loose image files can be added. Files named `bad…` are quarantined."""

    store: ObjectStore
    name: str
    model: ModelVersion

    def add(
        self, batch: str, shards: Sequence[Sequence[Path]], *, finished: int | None = None, committed: bool = True
    ) -> None:
        """Write a batch.

        Args:
            batch: id of the batch.
            shards: the files of each shard.
            finished: number of shards that have parts, by default all.
            committed: whether the batch has a manifest.
        """
        self._write_plan(batch, shards)
        for number, files in enumerate(shards[:finished]):
            self._write_shard(batch, number, files)
        if committed:
            self._create(f"batch={batch}/_manifest.json", self._manifest(batch, shards))
        log: dict[str, Any] = {"batches": []}
        etag = None
        if self.store.stat(self._key("_batches.json")):
            data, etag = self.store.read_with_etag(self._key("_batches.json"))
            log = json.loads(data)
        log["batches"].append(self._identity(batch) | {"committed": committed})
        self.store.swap(self._key("_batches.json"), json.dumps(log, indent=1).encode(), seen=etag)

    def _write_plan(self, batch: str, shards: Sequence[Sequence[Path]]) -> None:
        pieces = [
            {
                "shard": number,
                "uri": f"file://{path}",
                "fingerprint": local_fingerprint(path.stat()),
                "kind": "image",
                "first_row": 0,
                "rows": 1,
                "offset": 0,
                "size": path.stat().st_size,
                "label": None,
            }
            for number, files in enumerate(shards)
            for path in files
        ]
        counts = {"table": self.name, "shards": len(shards), "planned": len(pieces)}
        metadata = {"fmnist_plan": json.dumps(self._identity(batch) | counts)}
        self._write(f"batch={batch}/_plan.parquet", pieces, _PLAN, metadata)

    def _write_shard(self, batch: str, number: int, files: Sequence[Path]) -> None:
        good = [f"file://{path}" for path in files if not path.name.startswith("bad")]
        bad = [f"file://{path}" for path in files if path.name.startswith("bad")]
        if bad:
            rows = [{"image": uri, "reason": "not an image: no known format", "label": None} for uri in bad]
            self._write(f"batch={batch}/_errors/part-{number:05d}.parquet", rows, _QUARANTINE, {})
        rows = [
            {
                "image": uri,
                "predicted_class": 3,
                "predicted_label": CLASS_NAMES[3],
                "confidence": 0.5,
                "probabilities": [0.5 if row == 3 else 0.5 / 9 for row in range(10)],
                "label": None,
                "model_version": str(self.model.version),
            }
            for uri in good
        ]
        books = {"shard": number, "planned": len(files), "predicted": len(good), "quarantined": len(bad), "seconds": 0}
        self._write(f"batch={batch}/part-{number:05d}.parquet", rows, _PREDICTIONS, {"fmnist_books": json.dumps(books)})

    def _manifest(self, batch: str, shards: Sequence[Sequence[Path]]) -> dict[str, Any]:
        names = [[path.name for path in files] for files in shards]
        bad = [number for number, files in enumerate(names) if any(name.startswith("bad") for name in files)]
        planned = sum(map(len, shards))
        quarantined = sum(name.startswith("bad") for files in names for name in files)
        return self._identity(batch) | {
            "table": self.name,
            "model": self.model.model_dump(mode="json"),
            "planned": planned,
            "predicted": planned - quarantined,
            "quarantined": quarantined,
            "parts": [self._key(f"batch={batch}/part-{number:05d}.parquet") for number in range(len(shards))],
            "error_parts": [self._key(f"batch={batch}/_errors/part-{number:05d}.parquet") for number in bad],
            "seconds": 1.5,
            "provenance": Provenance.now().model_dump(mode="json"),
        }

    def _identity(self, batch: str) -> dict[str, Any]:
        options = ReadOptions().to_record()
        return {"batch": batch, "model_version": str(self.model.version), "options": options}

    def _key(self, name: str) -> str:
        return f"predictions/{self.name}/{name}"

    def _create(self, name: str, content: dict[str, Any]) -> None:
        self.store.create(self._key(name), json.dumps(content, indent=2).encode())

    def _write(self, name: str, rows: list[dict[str, Any]], schema: pa.Schema, metadata: dict[str, str]) -> None:
        with self.store.publish(self._key(name)) as stream, pq.ParquetWriter(stream, schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            writer.add_key_value_metadata(metadata)
