"""Pause garbage collection during imports."""

import gc

import pytest

from infra.importing import gc_paused


def test_failed_import_turns_garbage_collection_back_on() -> None:
    with pytest.raises(ImportError), gc_paused():
        raise ImportError
    assert gc.isenabled()
