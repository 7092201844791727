"""The batches of a table, numbered in the order of their plans.

    work/<table>/batches/00000012.json    created on condition that nobody else has created it

A planner leaves out the images of all batches that it has read, and takes the next number. If another planner took
that number meanwhile, it plans again. So an image is never in two batches of the same model.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel

from infra.errors import JobError
from infra.storage.keys import number_key, numbers_folder
from infra.storage.object_store import ObjectExists, ObjectStore

_READS_AT_ONCE = 16


class NumberTaken(JobError):
    """Another planner has taken the number."""


class NumberedBatch(BaseModel, frozen=True):
    """A batch whose plan is in the store."""

    number: int
    batch: str
    model_version: str
    options: dict[str, Any]


def list_batches(store: ObjectStore, table: str) -> list[NumberedBatch]:
    """Return all batches of a table, in the order of their numbers."""
    keys = [stat.key for stat in store.list(f"{numbers_folder(table)}/")]
    with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
        return [NumberedBatch.model_validate_json(data) for data in threads.map(store.read, keys)]


def take_number(store: ObjectStore, table: str, entry: NumberedBatch) -> None:
    """Give a number to a batch whose plan is in the store.

    Raises:
        NumberTaken: another batch has this number.
    """
    try:
        store.create(number_key(table, entry.number), entry.model_dump_json().encode())
    except ObjectExists:
        raise NumberTaken(f"Another planner has taken number {entry.number} of table {table}.") from None
