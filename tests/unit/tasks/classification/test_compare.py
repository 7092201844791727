"""The images of a split have the same URIs in its predictions and in the comparison with its labels."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fmnist_model.dataset import to_table
from infra.provenance import Provenance
from infra.settings import Settings
from infra.storage.datasets import DatasetRecord, DatasetSplit
from infra.storage.keys import dataset_part_key
from infra.storage.object_store import open_store
from tasks.classification.compare import _labels
from tasks.classification.read import read_shard
from tasks.dataset import split_uris
from tests.unit.tasks.classification.image_inputs import OPTIONS, picture, plan_of


@pytest.mark.parametrize("folder", ["store", "50%41 #1?", "link/store", "./link//store"])
def test_images_are_compared_under_the_uris_of_their_predictions(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "50A #1?").mkdir()  # the decoded name of a store's folder
    monkeypatch.setenv("FMNIST_STORE", f"{tmp_path}/{folder}")
    store = open_store(Settings().store)
    key = dataset_part_key("d", "test", 0, 1)
    images = np.stack([picture(number) for number in range(3)])
    with store.publish(key) as stream:
        pq.write_table(to_table(images, np.array([7, 8, 9], np.uint8), 0, "test"), stream)
    splits = {"test": DatasetSplit(parts=[key], images=3)}
    dataset = DatasetRecord(name="d", version="1", source="", splits=splits, provenance=Provenance.now())

    predicted = [
        image for batch in read_shard(plan_of(*split_uris(dataset, "test")), OPTIONS) for image in batch.images
    ]
    assert predicted == list(_labels(store, dataset, "test").column("image"))
    assert len(predicted) == 3
