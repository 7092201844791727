"""Image datasets in the store: Parquet parts by split, with `dataset.json` as commit marker."""

from pydantic import BaseModel

from infra.provenance import Provenance
from infra.storage.keys import dataset_record_key
from infra.storage.object_store import ObjectNotFound, ObjectStore


class DatasetSplit(BaseModel):
    """The parts of one split."""

    parts: list[str]
    """Keys of the Parquet files, in order, relative to the store's root."""
    images: int


class DatasetRecord(BaseModel):
    """The content of `dataset.json`."""

    name: str
    version: str
    """Digest of the source files."""
    source: str
    """Place where the source files were found."""
    splits: dict[str, DatasetSplit]
    transform: int = 1
    """Version of the transform that reads the images."""
    provenance: Provenance


def read_dataset(store: ObjectStore, name: str) -> DatasetRecord | None:
    """Read a dataset's record, or return None if the store has no complete one."""
    try:
        return DatasetRecord.model_validate_json(store.read(dataset_record_key(name)))
    except ObjectNotFound:
        return None


def write_dataset(store: ObjectStore, record: DatasetRecord) -> None:
    """Commit a dataset whose parts are in the store."""
    with store.publish(dataset_record_key(record.name)) as stream:
        stream.write(record.model_dump_json(indent=2).encode())
