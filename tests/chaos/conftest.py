"""The chaos suite's store: a bucket on S3, behind a proxy that injects the faults a test asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fmnist_model.images.decode import encode_png
from infra.storage.object_store import ObjectStore, open_store
from tests.chaos.faults import FaultSchedule
from tests.harness.s3_server import S3Server, faulty_proxy, isolate_aws

FIRST_SEED = 20_261_123

TIMEOUT_SECONDS = 1.0
"""S3 timeout of the suite. It is short, so that hung connections don't slow the suite down."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--short", action="store_true", help="run few rounds of the slow tests")
    parser.addoption("--rounds", type=int, help="number of rounds of each randomised test")
    parser.addoption(
        "--seed", type=int, default=FIRST_SEED, help="seed of the first round, later rounds count up from it"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `seed` once per seed. Its mark `rounds` says how many."""
    if "seed" not in metafunc.fixturenames:
        return
    [mark] = metafunc.definition.iter_markers("rounds")
    config = metafunc.config
    rounds = config.getoption("--rounds") or mark.kwargs["short" if config.getoption("--short") else "full"]
    first = config.getoption("--seed")
    metafunc.parametrize("seed", range(first, first + rounds))


@dataclass
class FaultyStore:
    """A store on S3 that is reached through a faulty proxy."""

    root: str
    faults: FaultSchedule
    server: S3Server
    """The server behind the proxy."""

    @contextmanager
    def without_proxy(self) -> Iterator[ObjectStore]:
        """Open the store without the proxy, to look at its contents."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, value in self.server.environment.items():
                monkeypatch.setenv(name, value)
            yield open_store(self.root)


@pytest.fixture(scope="session")
def faulty_store(ceph_or_moto: S3Server, session_folder: Path) -> Iterator[FaultyStore]:
    faults = FaultSchedule(hang_seconds=2 * TIMEOUT_SECONDS)
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        faulty_proxy(ceph_or_moto, faults.before, faults.after) as server,
    ):
        isolate_aws(monkeypatch)
        root = f"s3://{server.bucket}/chaos"
        variables = server.environment | {
            "FMNIST_STORE": root,
            "FMNIST_STATE_DIR": str(session_folder / "state"),
            "FMNIST_S3_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield FaultyStore(root, faults, ceph_or_moto)


@pytest.fixture(scope="session")
def session_store(faulty_store: FaultyStore) -> str:
    """Root of the session's store. It replaces the folder that the other suites use."""
    return faulty_store.root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, and a file that isn't one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encode_png(np.full((28, 28), 50 * number, np.uint8)))
    (folder / "broken.png").write_bytes(b"not an image")
    return folder
