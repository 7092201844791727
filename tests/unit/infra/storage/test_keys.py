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
        (keys.table_folder("t"), "predictions/t"),
        (keys.quarantine_folder("t"), "quarantine/t"),
        (keys.books_folder("t"), "batches/t"),
        (keys.part_name("b", 17, "0123456789ab"), "_parts/batch=b/00017-0123456789ab.parquet"),
        (keys.parts_folder("quarantine/t", "b"), "quarantine/t/_parts/batch=b"),
        (keys.report_key("t", "b"), "predictions/t/_reports/b/index.html"),
        (keys.number_key("t", 12), "work/t/batches/00000012.json"),
        (keys.index_key("t", 1, 12), "work/t/index/00000001-00000012.parquet"),
        (keys.plan_key("t", "b"), "work/t/b/plan.parquet"),
        (keys.record_key("t", "b", 17, 1), "work/t/b/shards/00017-1.json"),
        (keys.old_log_key("t"), "predictions/t/_batches.json"),
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


@pytest.mark.parametrize("entry", [(0, 0), (17, 3), (100_000, 12)])
def test_shard_and_number_are_read_back_from_a_record(entry: tuple[int, int]) -> None:
    assert keys.record_of(keys.record_key("t", "b", *entry).rpartition("/")[2]) == entry


@pytest.mark.parametrize("name", ["1-0.json", "00001.json", "00001-0.json.tmp", "shards/00001-0.json", ""])
def test_file_of_another_name_is_not_a_record(name: str) -> None:
    assert keys.record_of(name) is None


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", ".hidden", "a b", "x" * 129])
def test_malformed_names_are_refused(name: str) -> None:
    for key in (keys.run_folder, keys.table_folder, keys.quarantine_folder, keys.books_folder, keys.work_folder):
        with pytest.raises(RequestError) as refused:
            key(name)
        assert repr(name) in str(refused.value)
