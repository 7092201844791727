"""Share one Ray, one Prefect server, the real dataset and a store between the tests of a session."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.services import prepare_environment

prepare_environment()

TEST_DATA = Path(__file__).parent.parent / "var" / "test-data"


@pytest.fixture(scope="session")
def data_store() -> str:
    """Return the root of a store with Fashion-MNIST. `make test` creates it, or else this fixture does."""
    from infra.settings import Settings
    from infra.storage.datasets import read_dataset
    from infra.storage.object_store import open_store
    from tasks.dataset import NAME, import_dataset

    settings = Settings(store=str(TEST_DATA))
    store = open_store(settings.store)
    if read_dataset(store, NAME) is None:
        import_dataset(store, settings)
    return settings.store


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="session")
def session_store(session_folder: Path, data_store: str) -> Iterator[str]:
    """Yield the root of the session's store, which holds Fashion-MNIST. The session's settings point to it."""
    root = session_folder / "store"
    shutil.copytree(data_store.removeprefix("file://"), root)
    before = {name: os.environ.get(name) for name in ("FMNIST_STORE", "FMNIST_STATE_DIR")}
    os.environ |= {"FMNIST_STORE": str(root), "FMNIST_STATE_DIR": str(session_folder / "state")}
    yield root.as_uri()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def running_services(session_store: str) -> Iterator[None]:
    """Run a real Ray and a real Prefect server for the whole session."""
    from flows.cli.services import services
    from infra.settings import load_settings

    with services(load_settings()):
        yield


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory, data_store: str) -> dict[str, str]:
    """Return an environment with a store for this module, which holds Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("module")
    shutil.copytree(data_store.removeprefix("file://"), folder / "store")
    return {"FMNIST_STORE": str(folder / "store"), "FMNIST_STATE_DIR": str(folder / "state")}


@pytest.fixture
def own_store(tmp_path: Path, data_store: str) -> dict[str, str]:
    """Return an environment with a store for this test, which holds Fashion-MNIST."""
    shutil.copytree(data_store.removeprefix("file://"), tmp_path / "store")
    return {"FMNIST_STORE": str(tmp_path / "store"), "FMNIST_STATE_DIR": str(tmp_path / "state")}
