"""Set aside a database that the installed Prefect can't use."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from infra.orchestration import history
from infra.orchestration.history import set_aside_unusable_history

PAGES = 400


@pytest.fixture(autouse=True)
def no_users_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_HOME", "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)


def newest_version() -> str:
    """Return the newest version of the database that the installed Prefect knows."""
    prefect = find_spec("prefect")
    assert prefect is not None
    assert prefect.origin is not None
    folder = Path(prefect.origin).parent / "server" / "database" / "_migrations" / "versions" / "sqlite"
    lines = [line for path in folder.glob("*.py") for line in path.read_text().splitlines()]
    earlier = {line.split('"')[1] for line in lines if line.startswith("down_revision") and '"' in line}
    [newest] = {line.split('"')[1] for line in lines if line.startswith("revision") and '"' in line} - earlier
    return newest


def write_database(path: Path, version: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", [version])
        connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, parameters TEXT)")
        connection.executemany("INSERT INTO runs (parameters) VALUES (?)", [["x" * 4000]] * PAGES)
        connection.commit()


def damage_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096 * 20] = b"\xff" * 4096 * 20
    path.write_bytes(content)


def of_another_version(path: Path) -> None:
    path.unlink()
    write_database(path, "0123456789ab")


def of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE places (url TEXT)")


@pytest.mark.parametrize(
    "spoil",
    [
        damage_the_middle,
        of_another_version,
        of_another_program,
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
    ],
    ids=["damaged", "other version", "other program", "no database", "truncated"],
)
def test_unusable_database_is_renamed_and_the_file_is_named(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    database = tmp_path / "prefect.db"
    write_database(database, newest_version())
    (tmp_path / "memo_store.toml").write_text("")
    spoil(database)
    content = database.read_bytes()
    sentence = set_aside_unusable_history(tmp_path)
    [aside] = tmp_path.glob("prefect.db.*")
    assert sentence is not None
    assert str(aside) in sentence
    assert aside.read_bytes() == content
    assert not database.exists()
    assert not (tmp_path / "memo_store.toml").exists()


def test_locked_database_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_LOCK_TIMEOUT_SECONDS", 0.1)
    database = tmp_path / "prefect.db"
    write_database(database, newest_version())
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "locked" in str(set_aside_unusable_history(tmp_path))
    assert not database.exists()


def test_usable_database_stays(tmp_path: Path) -> None:
    database = tmp_path / "prefect.db"
    write_database(database, newest_version())
    assert set_aside_unusable_history(tmp_path) is None
    database.write_bytes(b"")  # as after a command that was killed at once
    assert set_aside_unusable_history(tmp_path) is None
    assert database.exists()


@pytest.mark.parametrize("name", ["PREFECT_HOME", "PREFECT_API_DATABASE_CONNECTION_URL"])
def test_database_that_the_user_chose_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prefect.db").write_text("no database")
    monkeypatch.setenv(name, "chosen")
    assert set_aside_unusable_history(tmp_path) is None
    assert (tmp_path / "prefect.db").exists()
