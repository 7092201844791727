"""Settings come from the environment or `.env`. An invalid value is refused by the setting's name."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.errors import RequestError
from infra.settings import load_settings
from infra.storage.object_store import open_store


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder without `.env`, with no settings in the environment."""
    for name in ("STORE", "RAY_ADDRESS", "DATASET_DIR", "STATE_DIR"):
        monkeypatch.delenv(f"FMNIST_{name}", raising=False)
    monkeypatch.setenv("HOME", "/home/analyst")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def store_for(value: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FMNIST_STORE", value)
    return load_settings().store


def test_defaults_need_no_server(tmp_path: Path):
    settings = load_settings()
    assert settings.store == (tmp_path / "var/store").as_uri()
    assert (settings.ray_address, settings.dataset_dir, settings.state_dir) == (None, None, tmp_path / "var")


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FMNIST_RAY_ADDRESS", "ray://head:10001")
    assert load_settings().ray_address == "ray://head:10001"


def test_env_file_is_read(tmp_path: Path):
    (tmp_path / ".env").write_text("FMNIST_STORE=/data/store\nFMNIST_RAY_ADDRESS='head:6379'\n# a comment\n")
    settings = load_settings()
    assert (settings.store, settings.ray_address) == ("file:///data/store", "head:6379")


def test_environment_overrides_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".env").write_text("FMNIST_STORE=/from/file\n")
    assert store_for("/from/environment", monkeypatch) == "file:///from/environment"


@pytest.mark.parametrize("where", ["environment", "env file"])
def test_empty_value_means_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    for name in ("STORE", "RAY_ADDRESS", "DATASET_DIR", "STATE_DIR"):
        if where == "environment":
            monkeypatch.setenv(f"FMNIST_{name}", "")
        else:
            with (tmp_path / ".env").open("a") as file:
                file.write(f"FMNIST_{name}=\n")
    settings = load_settings()
    assert (settings.store, settings.ray_address) == ((tmp_path / "var/store").as_uri(), None)
    assert (settings.dataset_dir, settings.state_dir) == (None, tmp_path / "var")


def test_relative_store_is_below_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert store_for("results/store", monkeypatch) == (tmp_path / "results/store").as_uri()


def test_store_stays_the_same_when_the_working_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = load_settings()
    monkeypatch.chdir("/")
    assert settings.store == (tmp_path / "var/store").as_uri()


@pytest.mark.parametrize(
    ("value", "store"),
    [
        ("~/store", "file:///home/analyst/store"),
        ("/data/store/", "file:///data/store"),
        ("file:///data/store", "file:///data/store"),
        ("file:///data/store/", "file:///data/store"),
        ("file://localhost/data/store", "file:///data/store"),
        ("FILE:///data/store", "file:///data/store"),
        ("/data/my store", "file:///data/my store"),
        ("file:///data/my store", "file:///data/my store"),
        ("file:///data/my%20store", "file:///data/my%20store"),
        ("/data/größe", "file:///data/größe"),
        ("/data/50%20off#1?", "file:///data/50%20off#1?"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
    ],
)
def test_store_is_normalized(monkeypatch: pytest.MonkeyPatch, value: str, store: str):
    assert store_for(value, monkeypatch) == store


@pytest.mark.parametrize("name", ["my store", "größe", "50%20off", "a#b", "a?b", "~nobody-of-that-name"])
def test_store_can_be_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    open_store(store_for(f"{tmp_path}/{name}", monkeypatch)).create("object", b"bytes")
    assert (tmp_path / name / "object").read_bytes() == b"bytes"


def test_tilde_before_an_unknown_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert store_for("~nobody-of-that-name/x", monkeypatch) == (tmp_path / "~nobody-of-that-name/x").as_uri()


def test_file_uri_with_a_host_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError) as refusal:
        store_for("file://data/store", monkeypatch)
    for words in ("FMNIST_STORE", "file://data/store", "file:///data/store"):
        assert words in str(refusal.value)


def test_secret_in_the_store_uri_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError) as refusal:
        store_for("s3://key:canary@bucket/prefix", monkeypatch)
    assert "FMNIST_STORE" in str(refusal.value)
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize("name", ["DATASET_DIR", "STATE_DIR"])
def test_tilde_in_a_folder_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(f"FMNIST_{name}", "~/folder")
    assert getattr(load_settings(), name.lower()) == Path("/home/analyst/folder")


@pytest.mark.parametrize("name", ["DATASET_DIR", "STATE_DIR"])
def test_relative_folder_is_below_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(f"FMNIST_{name}", "folder")
    assert getattr(load_settings(), name.lower()) == tmp_path / "folder"


def test_other_variables_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FMNIST_STOER", "/data")
    (tmp_path / ".env").write_text("DATABASE_URL=postgres://x\n")
    assert load_settings().store == (tmp_path / "var/store").as_uri()


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().store = "file:///elsewhere"


def test_settings_hold_no_credentials_of_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".env").write_text("AWS_SECRET_ACCESS_KEY=hunter2\nFMNIST_STORE=s3://bucket\n")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2")
    settings = load_settings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("value", "folders"),
    [
        ("", ()),
        ("/data", (Path("/data"),)),
        ("/data:/mnt/my images,1:", (Path("/data"), Path("/mnt/my images,1"))),
    ],
)
def test_shared_folders_are_separated_by_colons(monkeypatch: pytest.MonkeyPatch, value: str, folders: tuple[Path, ...]):
    monkeypatch.setenv("FMNIST_SHARED_FOLDERS", value)
    assert load_settings().shared_folders == folders


@pytest.mark.parametrize("value", ["data", "/data:images", "s3://bucket/x", "file:///data"])
def test_shared_folder_that_is_not_an_absolute_path_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("FMNIST_SHARED_FOLDERS", value)
    with pytest.raises(RequestError, match=r"FMNIST_SHARED_FOLDERS.*absolute"):
        load_settings()
