"""Compare predictions with the labels of a dataset."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from infra.settings import load_settings
from infra.storage.datasets import DatasetRecord
from infra.storage.keys import table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import BatchBooks
from infra.storage.tables.delta import open_delta
from infra.storage.uris import canonical_from_raw
from tasks.step import step


@dataclass(frozen=True)
class CheckedPredictions:
    """Result of comparing predictions with the labels of a dataset."""

    images: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, NaN without images."""
        return self.correct / self.images if self.images else float("nan")


@step("compare predictions with labels")
def compare_with_labels(batches: list[BatchBooks], dataset: DatasetRecord, split: str) -> CheckedPredictions:
    """Join predictions with the labels in a split's own files by image, and count the correct ones."""
    import duckdb

    store = open_store(load_settings().store)
    table = open_delta(store, table_folder(batches[0].table)) if batches else None
    if table is None:
        return CheckedPredictions(0, 0)
    predictions = table.dataset([books.batch for books in batches])
    labels = _labels(store, dataset, split)
    with duckdb.connect() as connection:
        connection.register("predictions", predictions)
        connection.register("labels", labels)
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (predicted_class = labels.label) "
            "FROM predictions JOIN labels USING (image)"
        ).fetchone()
    images, correct = row or (0, 0)
    return CheckedPredictions(images, correct)


def _labels(store: ObjectStore, dataset: DatasetRecord, split: str) -> pa.Table:
    tables = []
    for key in dataset.splits[split].parts:
        filesystem, path = store.arrow(key)
        labels = pq.read_table(path, filesystem=filesystem, columns=["label"]).column("label")
        uri = canonical_from_raw(store.uri(key))
        images = pa.array([f"{uri}#row={number}" for number in range(len(labels))])
        tables.append(pa.table({"image": images, "label": labels}))
    return pa.concat_tables(tables)
