"""Prefect's server on SQLite."""

import asyncio
import gc
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
from docket import Docket, Worker
from prefect.server.api import background_workers
from prefect.server.database import configurations
from sqlalchemy.ext.asyncio import AsyncSession

from infra.orchestration.server import calm_background_worker, have_writers_wait


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
    have_writers_wait()
    assert asyncio.run(take_after_another(database)) == 2


def test_background_worker_of_a_run_looks_seldom_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_workers, "Worker", background_workers.Worker)  # to be put back
    assert hasattr(Worker, "_cancellation_listener"), "what is replaced has another name"
    calm_background_worker()

    async def work() -> list[float]:
        async with (
            Docket(name="calm", url="memory://") as docket,
            background_workers.background_worker(docket, ephemeral=True),
        ):
            await asyncio.sleep(0.1)
            workers = [found for found in gc.get_objects() if isinstance(found, Worker) and found.docket is docket]
            return [worker.scheduling_resolution.total_seconds() for worker in workers]

    assert asyncio.run(asyncio.wait_for(work(), 20)) == [2.0]
