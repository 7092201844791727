"""Load a split of a dataset from the store."""

from typing import Any

import pyarrow.parquet as pq

from fmnist_model.dataset import LabelledImages, from_table
from infra.storage.datasets import DatasetRecord
from infra.storage.keys import dataset_folder
from infra.storage.object_store import ObjectStore


def load_split(store: ObjectStore, dataset: DatasetRecord, split: str) -> LabelledImages:
    """Read and decode all images of a split.

    Raises:
        InvalidDataset: a file of the split is damaged.
    """

    def read(key: str) -> Any:
        filesystem, path = store.arrow(key)
        return pq.read_table(path, filesystem=filesystem, columns=["image", "label"])

    parts = dataset.splits[split].parts
    return from_table((read(key) for key in parts), f"{store.uri(dataset_folder(dataset.name))}/{split}")
