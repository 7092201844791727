"""The guard of a Parquet file's pages lets ordinary files pass as fast as pyarrow reads them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmnist_model.formats.parquet_pages import FewerRows, PageGuard, read_column_chunks

ROWS = 4096


@pytest.fixture
def pixels(tmp_path: Path) -> pa.NativeFile:
    """A file of raw pixels whose dictionary is as large as pyarrow's usual limit."""
    values = np.random.default_rng(0).integers(0, 256, (2 * ROWS, 784), np.uint8)
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(784), len(values), [None, pa.py_buffer(values.tobytes())])
    pq.write_table(pa.table({"image": images}), tmp_path / "pixels.parquet")
    return pa.OSFile(str(tmp_path / "pixels.parquet"))


def read(file: pa.NativeFile, guard: PageGuard) -> list[int]:
    parquet = pq.ParquetFile(guard.open(), metadata=pq.ParquetFile(file).metadata)
    return [len(batch) for batch in parquet.iter_batches(ROWS, use_threads=False)]


def test_values_of_a_known_size_are_decoded_in_full_batches(pixels: pa.NativeFile) -> None:
    [chunks] = read_column_chunks(pixels, "pixels.parquet")
    assert read(pixels, PageGuard(pixels, chunks, ROWS, widths={"image": 784})) == [ROWS, ROWS]


def test_values_of_unknown_size_may_be_as_large_as_the_dictionary(pixels: pa.NativeFile) -> None:
    [chunks] = read_column_chunks(pixels, "pixels.parquet")
    guard = PageGuard(pixels, chunks, ROWS)
    with pytest.raises((FewerRows, OSError, pa.ArrowException)):
        read(pixels, guard)
    assert isinstance(guard.refusal, FewerRows)
