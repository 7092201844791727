"""Run Prefect's server on SQLite."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
from prefect.server.database import configurations
from sqlalchemy.ext.asyncio import AsyncSession

from infra.upstream.prefect_sqlite_transactions import begin_transactions_as_writers


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "prefect.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE slots (taken INTEGER)")
        connection.execute("INSERT INTO slots VALUES (0)")
    return path


async def take_twice(database: Path) -> int:
    """Increment a number in two transactions at once, each of which reads and then writes. Returns the result."""
    configuration = configurations.AioSqliteConfiguration(f"sqlite+aiosqlite:///{database}")
    engine = await configuration.engine()

    async def take(wait_for: asyncio.Event, has_read: asyncio.Event) -> None:
        async with (
            AsyncSession(engine) as session,
            configuration.begin_transaction(session),
        ):
            await session.execute(sqlalchemy.text("SELECT taken FROM slots"))
            has_read.set()
            await asyncio.wait_for(wait_for.wait(), 5)
            await session.execute(sqlalchemy.text("UPDATE slots SET taken = taken + 1"))

    first_has_read, may_write = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(take(may_write, first_has_read))
    await first_has_read.wait()
    second = asyncio.create_task(take(first_has_read, asyncio.Event()))
    await asyncio.sleep(0.3)  # enough for the second transaction to write, if it doesn't wait for the first
    may_write.set()
    await asyncio.gather(first, second)
    await engine.dispose()
    with sqlite3.connect(database) as connection:
        return int(connection.execute("SELECT taken FROM slots").fetchone()[0])


def test_concurrent_transactions_both_succeed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = configurations.AioSqliteConfiguration
    monkeypatch.setattr(configuration, "begin_transaction", configuration.begin_transaction)  # to restore
    begin_transactions_as_writers()
    assert asyncio.run(take_twice(database)) == 2
