"""What several of the unit tests need."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own; what is closed in it is opened again to be removed."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        for path in Path(folder).iterdir():
            path.chmod(0o755)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """For what is so small, and on a machine that others use too, more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
