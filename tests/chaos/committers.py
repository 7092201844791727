"""Commit batches in many processes. Imports neither torch nor Ray, so that each process starts fast."""

import pyarrow as pa

from infra.storage.model_registry import ModelVersion
from infra.storage.object_store import open_store
from infra.storage.tables.commit import PartSchemas, commit_batch
from infra.storage.tables.planning.plan import BatchPlan
from infra.storage.tables.records import read_records


def commit_share(
    number: int, root: str, plans: list[BatchPlan], schemas: list[pa.Schema], model: ModelVersion
) -> tuple[str, int]:
    """Commit the plan of this process, whose shards are all done. Return the batch and the images in its books."""
    store, plan = open_store(root), plans[number]
    predictions, quarantine = schemas
    books = commit_batch(
        store,
        plan,
        read_records(store, plan),
        PartSchemas(predictions, quarantine),
        model=model,
        temperature=1.0,
        seconds=1.0,
    )
    return books.batch, books.planned
