"""Compact a table, delete an image and prune, on moto and on Ceph."""

from datetime import timedelta

from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore
from infra.storage.retention import prune
from infra.storage.tables.maintenance.compact import compact
from infra.storage.tables.maintenance.delete import delete_images
from tests.unit.infra.storage.tables.committed_tables import SCHEMAS, TABLE, commit, image, images, parts, uris

pytest_plugins = ["tests.harness.gateways"]


def test_table_on_a_server_is_compacted_cleaned_and_pruned(s3_store: ObjectStore) -> None:
    for number in range(1, 4):
        commit(s3_store, number, images(number, 10 + number), images(100 + number))

    compact(s3_store, TABLE, SCHEMAS)
    assert (len(parts(s3_store)), len(uris(s3_store)), len(uris(s3_store, quarantine_folder(TABLE)))) == (1, 6, 3)

    assert delete_images(s3_store, TABLE, image(2), SCHEMAS).predictions == 1
    assert uris(s3_store) == images(1, 3, 11, 12, 13)

    assert prune(s3_store, older_than=timedelta(minutes=-1)).removed
    listed = [
        stat.key.removeprefix(f"{table_folder(TABLE)}/") for stat in s3_store.list(f"{table_folder(TABLE)}/_parts/")
    ]
    assert listed == parts(s3_store)
    assert uris(s3_store, quarantine_folder(TABLE)) == images(101, 102, 103)
