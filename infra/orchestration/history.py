"""Keep the database of a server that is started here usable.

It holds the history of flow runs, and nothing that a run needs. If it is damaged, or belongs to another version of
Prefect, it is set aside, and the server creates a new one.
"""

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

_DATABASE = "prefect.db"
_ITS_FILES = (_DATABASE, f"{_DATABASE}-wal", f"{_DATABASE}-shm")
_BLOCK_MEMO = "memo_store.toml"
"""Prefect's note about what it has already written to the database."""
_LOCK_TIMEOUT_SECONDS = 10
_CHECKED_BYTES = 64 * 2**20
"""Size up to which the whole database is checked. The check takes 0.1 s for 10 MB."""
_ADDRESSES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")


def users_database(home: Path) -> str | None:
    """Return the variable with which the user chose another database than the one in a server's folder, if any.

    Args:
        home: folder of the server.
    """
    if (os.environ.get("PREFECT_HOME") or str(home)) != str(home):
        return "PREFECT_HOME"
    return next((name for name in _ADDRESSES if os.environ.get(name)), None)


def set_aside_unusable_history(home: Path) -> str | None:
    """Rename the database in a server's folder if the installed Prefect can't use it.

    A database that the user chose by a variable is left alone.

    Args:
        home: folder of the server.

    Returns:
        A sentence that says what was set aside and why. None if there was nothing to do.
    """
    if users_database(home) or not os.access(home / _DATABASE, os.F_OK) or not os.access(home, os.W_OK):
        return None
    with locked(home / "starting.lock"):
        flaw = _flaw(home / _DATABASE)
        if flaw is None:
            return None
        ending = f".{datetime.now():%Y-%m-%dT%H-%M-%S}"
        for name in _ITS_FILES:
            if (home / name).exists():
                (home / name).rename(home / f"{name}{ending}")
        (home / _BLOCK_MEMO).unlink(missing_ok=True)
        return f"The history of flow runs is set aside as {home / _DATABASE}{ending}: {flaw}."


def _flaw(database: Path) -> str | None:
    """Say why the installed Prefect can't use a database. None if it can."""
    try:
        with closing(sqlite3.connect(database, timeout=_LOCK_TIMEOUT_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if database.stat().st_size <= _CHECKED_BYTES:
                [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    return f"it is damaged ({found.splitlines()[-1]})"
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" not in tables:
                return "it is not one of Prefect's" if tables else None
            versions = [version for (version,) in connection.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.Error as error:
        return f"it can't be used ({error})"
    unknown = [version for version in versions if not _is_known(version)]
    return f"it was written by another version of Prefect ({unknown[0]})" if unknown else None


def _is_known(version: str) -> bool:
    """Return whether the installed Prefect has a migration to this version of the database."""
    prefect = find_spec("prefect")  # an import would take a second
    if prefect is None or prefect.origin is None:
        return True
    folder = Path(prefect.origin).parent / "server" / "database" / "_migrations" / "versions" / "sqlite"
    names = sorted(folder.glob("*.py"), reverse=True)  # the newest first
    if not names or any(f"_{version}_" in path.name for path in names):
        return True
    own = re.compile(rf"^revision\b[^=\n]*= *[\"']{re.escape(version)}[\"']", re.MULTILINE)
    return any(own.search(path.read_text(encoding="utf-8")) for path in names)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of blocks with this lock while the block runs. A killed process releases its lock.

    Args:
        path: file to lock. On a file system without locks, the block runs without one.
    """
    with path.open("ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
