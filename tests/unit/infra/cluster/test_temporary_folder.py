"""Choose the folder for Ray's sockets, logs and spilled objects."""

from pathlib import Path

import pytest

from infra.cluster import temporary_folder
from infra.cluster.temporary_folder import ray_folder
from infra.errors import RequestError


@pytest.fixture(autouse=True)
def no_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_short_folder_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")  # noqa: S108 (nothing is written there)
    assert ray_folder().options() == {}


def test_long_folder_keeps_the_objects_but_not_the_sockets(long_folder: Path) -> None:
    options = ray_folder(dashboard=True).options()
    assert options["object_spilling_directory"] == str(long_folder)
    assert len(options["_temp_dir"]) < 33


def test_folder_for_sockets_is_private(long_folder: Path) -> None:
    private = Path(ray_folder().options()["_temp_dir"]).parent
    assert private.stat().st_mode & 0o077 == 0


def test_private_folder_that_others_can_enter_is_not_used(
    long_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "tmp"
    parent.mkdir()
    # Paths of tests are long themselves.
    monkeypatch.setattr(temporary_folder, "_SOCKET_BYTES", len(f"{long_folder}") + 64)
    monkeypatch.setattr(temporary_folder, "_SHORT_FOLDERS", [str(parent)])
    assert ray_folder().short is not None
    [private] = parent.iterdir()
    private.chmod(0o777)
    with pytest.raises(RequestError, match="TMPDIR"):
        ray_folder()


def test_folder_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(RequestError, match=f"TMPDIR: {tmp_path}/none"):
        ray_folder()
