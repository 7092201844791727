"""The image and Compose, without a container engine."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.deploy.image import Image, readable_python
from tests.harness.absent import missing


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The image's files, made by the steps of its Containerfile."""
    python = readable_python()
    if python is None:
        missing("no Python 3.11 with venv that another user may run: sudo apt-get install --yes python3-venv")
    # Not among pytest's own folders, which no other user may enter; with a short path, for Ray's sockets lie in it.
    with TemporaryDirectory(prefix="image-") as folder:
        Path(folder).chmod(0o755)
        before = os.umask(0o022)
        try:
            built = Image(Path(folder))
            built.build("gpu", python)
        finally:
            os.umask(before)
        yield built
