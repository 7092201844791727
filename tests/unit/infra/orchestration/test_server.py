"""Prefect's server on SQLite."""

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


async def take_after_another(database: Path) -> int:
    """Read and write in one transaction, while another one writes; returns what is there then."""
    configuration = configurations.AioSqliteConfiguration(f"sqlite+aiosqlite:///{database}")
    engine = await configuration.engine()

    async def take(wait: asyncio.Event, tell: asyncio.Event) -> None:
        async with (
            AsyncSession(engine) as session,
            configuration.begin_transaction(session),
        ):
            await session.execute(sqlalchemy.text("SELECT taken FROM slots"))
            tell.set()
            await asyncio.wait_for(wait.wait(), 5)
            await session.execute(sqlalchemy.text("UPDATE slots SET taken = taken + 1"))

    began, ready = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(take(ready, began))
    await began.wait()
    second = asyncio.create_task(take(began, asyncio.Event()))
    await asyncio.sleep(0.3)  # long enough for the second to write, if it does not wait
    ready.set()
    await asyncio.gather(first, second)
    await engine.dispose()
    with sqlite3.connect(database) as connection:
        return int(connection.execute("SELECT taken FROM slots").fetchone()[0])


def test_transaction_that_reads_and_writes_waits_for_another(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = configurations.AioSqliteConfiguration
    monkeypatch.setattr(configuration, "begin_transaction", configuration.begin_transaction)  # to be put back
    begin_transactions_as_writers()
    assert asyncio.run(take_after_another(database)) == 2
