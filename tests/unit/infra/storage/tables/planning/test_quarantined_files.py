"""A planner learns which files have images in quarantine, and reads no more parts for that than it needs."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.storage.keys import quarantine_folder
from infra.storage.object_store import ObjectNotFound, ObjectStore, open_store
from infra.storage.tables.delta import open_delta
from infra.storage.tables.planning.quarantined_files import write_quarantined_files
from tests.unit.infra.storage.tables.committed_tables import TABLE, commit

ALL = "file:///", "file:///z"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def quarantined(
    store: ObjectStore, folder: Path, *, bounds: tuple[str, str] = ALL, model: str = "1"
) -> list[tuple[str, int, int, int, int]]:
    """Return URI, batch, and numbers of images of each file."""
    path = write_quarantined_files(store, TABLE, model, folder, bounds=bounds)
    columns = pq.read_table(path).to_pydict() if path else {"uri": []}
    return sorted(zip(*columns.values(), strict=True))


def remove_parts(store: ObjectStore, uri: str) -> None:
    """Delete the parts of the quarantine that hold an image."""
    snapshot = open_delta(store, quarantine_folder(TABLE))
    assert snapshot is not None
    for part in snapshot.parts():
        if part.first_image == uri:
            store.delete(f"{quarantine_folder(TABLE)}/{part.name}")


def test_files_are_counted_by_batch(tmp_path: Path, store: ObjectStore):
    commit(store, 1, [], ["file:///a.tar#member=1", "file:///a.tar#member=2", "file:///b.png"])
    commit(store, 2, [], ["file:///a.tar#member=2"])
    assert quarantined(store, tmp_path) == [
        ("file:///a.tar", 1, 2, 0, 0),
        ("file:///a.tar", 2, 1, 0, 0),
        ("file:///b.png", 1, 1, 0, 0),
    ]


def test_files_of_another_model_are_left_out(tmp_path: Path, store: ObjectStore):
    commit(store, 1, [], ["file:///a.png"])
    commit(store, 2, [], ["file:///b.png"], model=2)
    assert [row[0] for row in quarantined(store, tmp_path, model="2")] == ["file:///b.png"]


def test_table_without_quarantine_has_none(tmp_path: Path, store: ObjectStore):
    assert quarantined(store, tmp_path) == []
    commit(store, 1, ["file:///a.png"])
    assert quarantined(store, tmp_path) == []


@pytest.mark.parametrize("last", ["file:///b.tar", "file:///b.tas"])
def test_parts_outside_of_the_wanted_files_are_not_read(tmp_path: Path, store: ObjectStore, last: str):
    uris = ["file:///a.png", "file:///b.tar#member=1", "file:///c.png"]
    for number, uri in enumerate(uris, 1):
        commit(store, number, [], [uri])
    remove_parts(store, uris[0])
    remove_parts(store, uris[2])
    assert [row[0] for row in quarantined(store, tmp_path, bounds=("file:///b", last))] == ["file:///b.tar"]


def test_missing_part_of_the_wanted_files_is_reported(tmp_path: Path, store: ObjectStore):
    commit(store, 1, [], ["file:///a.png"])
    remove_parts(store, "file:///a.png")
    with pytest.raises(ObjectNotFound):
        quarantined(store, tmp_path)
