"""What a process that begins does without."""

import gc
import subprocess
import sys

import pytest

from infra.importing import uncollected


def told(program: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


WITHOUT_PANDAS = """
import sys
import pyarrow
from infra.importing import keep_pandas_out
keep_pandas_out()
array = pyarrow.array(["a list", None])
"""


def test_arrow_arrays_are_made_without_pandas() -> None:
    assert told(WITHOUT_PANDAS + "print('pandas' in sys.modules)") == "False"


def test_pandas_is_there_for_who_asks_for_it() -> None:
    assert told(WITHOUT_PANDAS + "print(array.to_pandas().iloc[0])") == "a list"


def test_garbage_is_looked_for_again_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
