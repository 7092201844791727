"""Build the image's files once, without a container engine."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.deploy.image import Image, readable_python
from tests.harness.absent import missing


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """Run the steps of the Containerfile into a folder."""
    python = readable_python()
    if python is None:
        missing("no Python 3.11 or newer with venv that another user can run: sudo apt-get install --yes python3-venv")
    # Other users can't enter pytest's own folders. The path is short, because Ray's sockets are in it.
    with TemporaryDirectory(prefix="image-") as folder:
        Path(folder).chmod(0o755)
        before = os.umask(0o022)
        try:
            built = Image(Path(folder))
            built.build("gpu", python)
        finally:
            os.umask(before)
        yield built
