"""Local inputs are refused if workers on other machines can't read them, before anything is planned."""

from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import pytest

from infra.errors import RequestError
from infra.settings import Settings
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.planning.batches import list_batches
from tasks.classification import shared_folders
from tasks.classification.plan import PlannedWork, plan_inputs
from tasks.classification.shared_folders import readable_folders
from tests.unit.tasks.classification.image_inputs import OPTIONS, model_version, png, save_files, save_parquet

Plan = Callable[..., PlannedWork]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_files(tmp_path / "images", {"a.png": png(1), "x/b.png": png(2)})
    return tmp_path / "images"


@pytest.fixture
def plan(store: ObjectStore, tmp_path: Path) -> Plan:
    """Plan inputs for workers that can read these folders only, or all."""

    def plan_for(folders: list[str | Path] | None, *inputs: str | Path) -> PlannedWork:
        return plan_inputs(
            store,
            [str(location) for location in inputs],
            table="t",
            model=model_version(1),
            options=OPTIONS,
            scratch=Path(mkdtemp(dir=tmp_path)),
            readable_folders=None if folders is None else [str(folder) for folder in folders],
        )

    return plan_for


def test_local_input_is_refused_and_nothing_is_planned(plan: Plan, store: ObjectStore, images: Path):
    with pytest.raises(RequestError) as refusal:
        plan([], images)
    for words in (f"file://{images}/", "FMNIST_SHARED_FOLDERS=/", "S3"):
        assert words in str(refusal.value)
    assert list_batches(store, "t") == []


def test_local_container_is_refused(plan: Plan, tmp_path: Path):
    with pytest.raises(RequestError, match=r"a\.parquet"):
        plan([], save_parquet(tmp_path / "a.parquet", [png(1)]))


def test_local_file_in_a_list_is_refused(plan: Plan, images: Path, tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/list.txt").write_text(f"file://{images}/a.png\n")
    with pytest.raises(RequestError, match=r"images/a\.png"):
        plan([tmp_path / "shared"], tmp_path / "shared/list.txt")


@pytest.mark.parametrize("folder", ["images", ""])
def test_input_in_a_shared_folder_is_planned(plan: Plan, images: Path, folder: str):
    assert plan([images.parent / folder], images).plans[0].planned == 2


@pytest.mark.parametrize("folder", ["image", "images/x", "images2", "nowhere"])
def test_folder_that_does_not_hold_all_inputs_does_not_share_them(plan: Plan, images: Path, folder: str):
    with pytest.raises(RequestError, match="images/a"):
        plan([images.parent / folder], images)


def test_every_folder_is_shared_if_the_root_is(plan: Plan, images: Path):
    assert plan(["/"], images).plans[0].planned == 2


def test_shared_folder_of_any_name_is_found(plan: Plan, tmp_path: Path):
    save_files(tmp_path / "größe 36 #1 50%?", {"a.png": png(1)})
    assert plan([tmp_path / "größe 36 #1 50%?"], tmp_path / "größe 36 #1 50%?").plans[0].planned == 1


def test_unfinished_batch_with_local_inputs_is_refused(plan: Plan, images: Path, tmp_path: Path):
    [unfinished] = plan(None, images).plans
    save_files(tmp_path / "shared", {"c.png": png(3)})
    with pytest.raises(RequestError) as refusal:
        plan([tmp_path / "shared"], tmp_path / "shared")
    for words in (unfinished.batch, f"file://{images}/", "FMNIST_RAY_ADDRESS"):
        assert words in str(refusal.value)


def test_all_folders_are_readable_if_the_workers_run_here(tmp_path: Path):
    assert readable_folders(Settings(store=str(tmp_path))) is None


def test_readable_folders_are_the_shared_ones_and_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shared_folders, "works_elsewhere", lambda: True)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    settings = Settings(store=str(tmp_path / "store"), shared_folders=(tmp_path / "link", tmp_path / "nowhere"))
    assert readable_folders(settings) == [f"{tmp_path}/{name}" for name in ("real", "nowhere", "store")]
    assert readable_folders(Settings(store="s3://bucket/prefix")) == []
