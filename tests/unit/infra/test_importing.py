"""Garbage collection while modules are imported."""

import gc

import pytest

from infra.importing import gc_paused


def test_failed_import_leaves_garbage_collection_on() -> None:
    with pytest.raises(ImportError), gc_paused():
        raise ImportError
    assert gc.isenabled()
