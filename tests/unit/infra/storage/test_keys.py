"""Keys stay what they are: stores of earlier releases hold objects under them."""

import pytest

from infra.errors import RequestError
from infra.storage import keys


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (keys.dataset_record_key("fashion-mnist"), "datasets/fashion-mnist/dataset.json"),
        (keys.dataset_part_key("d", "test", 0, 1), "datasets/d/test/test-00000-of-00001.parquet"),
        (keys.checkpoint_folder("r", 7), "runs/r/checkpoints/epoch-0007"),
        (keys.checkpoint_record_key("r", 12_345), "runs/r/checkpoints/epoch-12345/checkpoint.json"),
        (keys.metrics_key("r"), "runs/r/metrics.parquet"),
        (keys.steps_key("r"), "runs/r/steps.parquet"),
        (keys.tensorboard_folder("r"), "runs/r/tensorboard"),
        (keys.run_report_key("r"), "runs/r/report/index.html"),
        (keys.version_key("m", 12), "models/m/versions/00000012.json"),
        (keys.alias_key("m", "champion"), "models/m/aliases/champion.json"),
        (keys.batch_log_key("t"), "predictions/t/_batches.json"),
        (keys.plan_key("t", "b"), "predictions/t/batch=b/_plan.parquet"),
        (keys.part_key("t", "b", 17), "predictions/t/batch=b/part-00017.parquet"),
        (keys.errors_key("t", "b", 17), "predictions/t/batch=b/_errors/part-00017.parquet"),
        (keys.parts_glob("t", "b"), "predictions/t/batch=b/part-*.parquet"),
        (keys.errors_glob("t", "b"), "predictions/t/batch=b/_errors/part-*.parquet"),
        (keys.batch_report_key("t", "b"), "predictions/t/batch=b/_report/index.html"),
        (keys.manifest_key("t", "b"), "predictions/t/batch=b/_manifest.json"),
    ],
)
def test_key(key: str, expected: str) -> None:
    assert key == expected


@pytest.mark.parametrize("epoch", [0, 7, 9999, 10_000])
def test_epoch_is_read_back_from_its_folder(epoch: int) -> None:
    assert keys.epoch_of(keys.checkpoint_folder("r", epoch).rpartition("/")[2]) == epoch


@pytest.mark.parametrize("name", ["epoch-7", "epoch-00007", "epoch-", "epoch-0007.tmp", "notes", ""])
def test_folder_of_another_name_has_no_epoch(name: str) -> None:
    assert keys.epoch_of(name) is None


def test_version_is_read_back_from_its_key() -> None:
    assert keys.version_of(keys.version_key("m", 12)) == 12
    assert keys.version_of("models/m/versions/notes.txt") is None


@pytest.mark.parametrize("shard", [0, 17, 100_000])
def test_shard_is_read_back_from_its_file_name(shard: int) -> None:
    assert keys.shard_of(keys.part_key("t", "b", shard).rpartition("/")[2]) == shard


@pytest.mark.parametrize("name", ["part-1.parquet", "part-00001.parquet.crc", "_errors/part-00001.parquet", ""])
def test_file_of_another_name_has_no_shard(name: str) -> None:
    assert keys.shard_of(name) is None


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", ".hidden", "a b", "x" * 129])
def test_malformed_names_are_refused(name: str) -> None:
    for key in (keys.run_folder, keys.table_folder):
        with pytest.raises(RequestError) as refused:
            key(name)
        assert repr(name) in str(refused.value)
