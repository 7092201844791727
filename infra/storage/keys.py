"""Keys of all objects in the store. No other module builds or parses one.

datasets/<name>/dataset.json                                the commit marker of a dataset
datasets/<name>/train/train-00000-of-00006.parquet
runs/<run id>/checkpoints/epoch-0007/checkpoint.json        the commit marker of a checkpoint
runs/<run id>/{metrics,steps}.parquet
runs/<run id>/tensorboard/
runs/<run id>/report/index.html
models/<name>/versions/00000012.json
models/<name>/aliases/champion.json
predictions/<table>/_batches.json                           the log of a table's batches
predictions/<table>/batch=<id>/_plan.parquet
predictions/<table>/batch=<id>/part-00017.parquet           rows of shard 17
predictions/<table>/batch=<id>/_errors/part-00017.parquet   its quarantine
predictions/<table>/batch=<id>/_report/index.html
predictions/<table>/batch=<id>/_manifest.json               the commit marker of a batch
scratch/                                                    what `fmnist store check` tries out
"""

import re

from infra.errors import RequestError

DATASETS, MODELS, PREDICTIONS, RUNS, SCRATCH = "datasets/", "models/", "predictions/", "runs/", "scratch/"
FOLDERS = (DATASETS, MODELS, PREDICTIONS, RUNS, SCRATCH)
"""All that the project keeps below the store's root."""

CHECKPOINT_RECORD = "checkpoint.json"
"""File name of a checkpoint's commit marker."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME_RULE = "Use up to 128 letters, digits, '.', '_' and '-', and start with a letter or digit."


def dataset_folder(name: str) -> str:
    """Return the folder of a dataset."""
    return f"{DATASETS}{name}"


def dataset_record_key(name: str) -> str:
    """Return the key of a dataset's record."""
    return f"{dataset_folder(name)}/dataset.json"


def dataset_part_key(name: str, split: str, number: int, count: int) -> str:
    """Return the key of part `number` of `count` of a split."""
    return f"{dataset_folder(name)}/{split}/{split}-{number:05d}-of-{count:05d}.parquet"


def run_folder(run_id: str) -> str:
    """Return the folder of a training run.

    Raises:
        RequestError: `run_id` is malformed.
    """
    return f"{RUNS}{_checked(run_id, 'a run id')}"


def checkpoints_folder(run_id: str) -> str:
    """Return the folder that holds the checkpoints of a run."""
    return f"{run_folder(run_id)}/checkpoints"


def checkpoint_folder(run_id: str, epoch: int) -> str:
    """Return the folder of one checkpoint.

    Raises:
        RequestError: `run_id` is malformed.
    """
    return f"{checkpoints_folder(run_id)}/epoch-{epoch:04d}"


def checkpoint_record_key(run_id: str, epoch: int) -> str:
    """Return the key of a checkpoint's record."""
    return f"{checkpoint_folder(run_id, epoch)}/{CHECKPOINT_RECORD}"


def epoch_of(folder_name: str) -> int | None:
    """Return the epoch of a checkpoint's folder name, such as `epoch-0007`, or None for other names."""
    match = re.fullmatch(r"epoch-(\d{4}|[1-9]\d{4,})", folder_name)
    return int(match[1]) if match else None


def metrics_key(run_id: str) -> str:
    """Return the key of a run's metrics by epoch."""
    return f"{run_folder(run_id)}/metrics.parquet"


def steps_key(run_id: str) -> str:
    """Return the key of a run's metrics by step."""
    return f"{run_folder(run_id)}/steps.parquet"


def tensorboard_folder(run_id: str) -> str:
    """Return the folder of a run's event files."""
    return f"{run_folder(run_id)}/tensorboard"


def run_report_key(run_id: str) -> str:
    """Return the key of a run's report."""
    return f"{run_folder(run_id)}/report/index.html"


def versions_folder(model: str) -> str:
    """Return the folder of a model's versions."""
    return f"{MODELS}{model}/versions"


def version_key(model: str, number: int) -> str:
    """Return the key of one version of a model."""
    return f"{versions_folder(model)}/{number:08d}.json"


def version_of(key: str) -> int | None:
    """Return the number of the version under a key, or None if the key is not a version's."""
    match = re.search(r"/(\d+)\.json$", key)
    return int(match[1]) if match else None


def alias_key(model: str, alias: str) -> str:
    """Return the key of an alias of a model."""
    return f"{MODELS}{model}/aliases/{alias}.json"


def table_folder(table: str) -> str:
    """Return the folder of a prediction table.

    Raises:
        RequestError: `table` is malformed.
    """
    return f"{PREDICTIONS}{_checked(table, 'a table name')}"


def batch_log_key(table: str) -> str:
    """Return the key of the log of a table's batches."""
    return f"{table_folder(table)}/_batches.json"


def batch_folder(table: str, batch: str) -> str:
    """Return the folder of a batch."""
    return f"{table_folder(table)}/batch={batch}"


def plan_key(table: str, batch: str) -> str:
    """Return the key of a batch's plan."""
    return f"{batch_folder(table, batch)}/_plan.parquet"


def manifest_key(table: str, batch: str) -> str:
    """Return the key of a batch's manifest."""
    return f"{batch_folder(table, batch)}/_manifest.json"


def batch_report_key(table: str, batch: str) -> str:
    """Return the key of a batch's report. Readers of the rows ignore it, as they do every name that starts with `_`."""
    return f"{batch_folder(table, batch)}/_report/index.html"


def part_key(table: str, batch: str, shard: int) -> str:
    """Return the key of a shard's rows."""
    return f"{batch_folder(table, batch)}/part-{shard:05d}.parquet"


def errors_key(table: str, batch: str, shard: int) -> str:
    """Return the key of a shard's quarantine."""
    return f"{batch_folder(table, batch)}/_errors/part-{shard:05d}.parquet"


def parts_glob(table: str, batch: str) -> str:
    """Return the glob of the rows of all shards of a batch."""
    return f"{batch_folder(table, batch)}/part-*.parquet"


def errors_glob(table: str, batch: str) -> str:
    """Return the glob of the quarantine of all shards of a batch."""
    return f"{batch_folder(table, batch)}/_errors/part-*.parquet"


def shard_of(name: str) -> int | None:
    """Return the shard of a part by its file name, or None if it is not a part."""
    match = re.fullmatch(r"part-(\d{5,})\.parquet", name)
    return int(match[1]) if match else None


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} is not {what}. {_NAME_RULE}")
    return name
