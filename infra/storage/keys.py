"""Keys of all objects in the store. No other module builds or parses one.

datasets/<name>/dataset.json                                the commit marker of a dataset
datasets/<name>/train/train-00000-of-00006.parquet
runs/<run id>/checkpoints/epoch-0007/checkpoint.json        the commit marker of a checkpoint
runs/<run id>/{metrics,steps}.parquet
runs/<run id>/tensorboard/
runs/<run id>/report/index.html
models/<name>/versions/00000012.json
models/<name>/aliases/champion.json
predictions/<table>/_delta_log/                             a Delta table: the rows of committed batches
predictions/<table>/_parts/batch=<id>/00017-<attempt>.parquet
predictions/<table>/_reports/<batch>/index.html
quarantine/<table>/                                         a Delta table with parts of the same names
batches/<table>/                                            a Delta table: the books of each batch
work/<table>/batches/00000012.json                          numbers of the batches, created on condition
work/<table>/index/00000001-00000012.parquet                files that the plans of these batches hold
work/<table>/<batch>/plan.parquet
work/<table>/<batch>/shards/00017-0.json                    record of a finished shard, created on condition
format.json                                                 version of this layout
scratch/                                                    what `fmnist store check` tries out
"""

import re

from infra.errors import RequestError

DATASETS, MODELS, RUNS, SCRATCH = "datasets/", "models/", "runs/", "scratch/"
PREDICTIONS, QUARANTINE, BATCHES, WORK = "predictions/", "quarantine/", "batches/", "work/"
FOLDERS = (BATCHES, DATASETS, MODELS, PREDICTIONS, QUARANTINE, RUNS, SCRATCH, WORK)
"""All folders that the project keeps below the store's root."""

FORMAT = "format.json"
"""Key of the version of the layout."""

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


def quarantine_folder(table: str) -> str:
    """Return the folder of a table's quarantine.

    Raises:
        RequestError: `table` is malformed.
    """
    return f"{QUARANTINE}{_checked(table, 'a table name')}"


def books_folder(table: str) -> str:
    """Return the folder of the books of a table's batches.

    Raises:
        RequestError: `table` is malformed.
    """
    return f"{BATCHES}{_checked(table, 'a table name')}"


def part_name(batch: str, shard: int, attempt: str) -> str:
    """Return the key of a part relative to the folder of its Delta table.

    No vacuum touches names that start with `_`. The partition's value is in the path, because Polars reads it there.
    """
    return f"_parts/batch={batch}/{shard:05d}-{attempt}.parquet"


def batch_of_part(name: str) -> str | None:
    """Return the batch of a part by its key relative to the folder of its Delta table, or None for other names.

    Parts that were written before Delta Lake are at `batch=<id>/part-00017.parquet`, and those of the quarantine at
    `batch=<id>/_errors/part-00017.parquet`.
    """
    match = re.fullmatch(r"(?:_parts/batch=([^/]+)/[^/]+|batch=([^/]+)/(?:_errors/)?part-\d+)\.parquet", name)
    return (match[1] or match[2]) if match else None


def parts_folder(folder: str, batch: str) -> str:
    """Return the folder of a batch's parts in the Delta table under `folder`."""
    return f"{folder}/_parts/batch={batch}"


def report_key(table: str, batch: str) -> str:
    """Return the key of a batch's report."""
    return f"{table_folder(table)}/_reports/{batch}/index.html"


def old_report_key(table: str, batch: str) -> str:
    """Return the key of the report of a batch from before Delta Lake."""
    return f"{table_folder(table)}/batch={batch}/_report/index.html"


def work_folder(table: str) -> str:
    """Return the folder with the plans and records of a table.

    Raises:
        RequestError: `table` is malformed.
    """
    return f"{WORK}{_checked(table, 'a table name')}"


def numbers_folder(table: str) -> str:
    """Return the folder of the table's numbered batches."""
    return f"{work_folder(table)}/batches"


def number_key(table: str, number: int) -> str:
    """Return the key that gives a number, from 1, to one batch of a table."""
    return f"{numbers_folder(table)}/{number:08d}.json"


def number_of(key: str) -> int | None:
    """Return the number of the batch under a key, or None if the key is not a numbered batch's."""
    match = re.search(r"/batches/(\d{8,})\.json$", key)
    return int(match[1]) if match else None


def index_folder(table: str) -> str:
    """Return the folder of the index of planned files."""
    return f"{work_folder(table)}/index"


def index_key(table: str, first: int, last: int) -> str:
    """Return the key of the index of the files that batches `first` to `last` hold."""
    return f"{index_folder(table)}/{first:08d}-{last:08d}.parquet"


def index_range_of(key: str) -> tuple[int, int] | None:
    """Return the first and the last batch of the index under a key, or None if the key is not an index's."""
    match = re.search(r"/index/(\d{8,})-(\d{8,})\.parquet$", key)
    return (int(match[1]), int(match[2])) if match else None


def batch_folder(table: str, batch: str) -> str:
    """Return the folder with the plan and the records of a batch."""
    return f"{work_folder(table)}/{batch}"


def plan_key(table: str, batch: str) -> str:
    """Return the key of a batch's plan."""
    return f"{batch_folder(table, batch)}/plan.parquet"


def records_folder(table: str, batch: str) -> str:
    """Return the folder of a batch's shard records."""
    return f"{batch_folder(table, batch)}/shards"


def record_key(table: str, batch: str, shard: int, number: int) -> str:
    """Return the key of a shard's record. `number` is 0, or counts the successors of records whose parts got lost."""
    return f"{records_folder(table, batch)}/{shard:05d}-{number}.json"


def record_of(name: str) -> tuple[int, int] | None:
    """Return shard and number of a record by its file name, or None for other names."""
    match = re.fullmatch(r"(\d{5,})-(\d+)\.json", name)
    return (int(match[1]), int(match[2])) if match else None


def old_log_key(table: str) -> str:
    """Return the key of the log of batches in the layout before Delta Lake."""
    return f"{table_folder(table)}/_batches.json"


def old_batch_folder(table: str, batch: str) -> str:
    """Return the folder of a batch in the layout before Delta Lake. Names of parts in the Delta log start with it."""
    return f"{table_folder(table)}/batch={batch}"


def old_plan_key(table: str, batch: str) -> str:
    """Return the key of a batch's plan in the layout before Delta Lake."""
    return f"{old_batch_folder(table, batch)}/_plan.parquet"


def old_manifest_key(table: str, batch: str) -> str:
    """Return the key of a batch's commit marker in the layout before Delta Lake."""
    return f"{old_batch_folder(table, batch)}/_manifest.json"


def old_part_key(table: str, batch: str, shard: int) -> str:
    """Return the key of a shard's rows in the layout before Delta Lake."""
    return f"{old_batch_folder(table, batch)}/part-{shard:05d}.parquet"


def old_errors_key(table: str, batch: str, shard: int) -> str:
    """Return the key of a shard's quarantine in the layout before Delta Lake."""
    return f"{old_batch_folder(table, batch)}/_errors/part-{shard:05d}.parquet"


def old_shard_of(name: str) -> int | None:
    """Return the shard of a part of the layout before Delta Lake by its file name, or None for other names."""
    match = re.fullmatch(r"part-(\d{5,})\.parquet", name)
    return int(match[1]) if match else None


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} is not {what}. {_NAME_RULE}")
    return name
