"""Images and containers that kill the process that decodes or reads them, for real.

No file does this reliably, because libraries get fixed. So `install` writes a `sitecustomize` module that makes every
Python process crash at marked inputs, if the folder is on PYTHONPATH.
"""

import io
import os
from pathlib import Path

from PIL import Image

_SIZES = {"SIGSEGV": (13, 1), "exit": (13, 2)}
"""Size of the picture whose decoder ends the process."""

MARK = b"kill the reader"
"""Bytes of an image or label file that kill the reader of its container."""

_SITE = f"""
import ctypes, json, os
import PIL.ImageFile
import pyarrow.parquet

load, loads, iter_batches = PIL.ImageFile.ImageFile.load, json.loads, pyarrow.parquet.ParquetFile.iter_batches

def deadly_load(picture):
    if picture.size == {_SIZES["SIGSEGV"]}:
        ctypes.string_at(0)
    if picture.size == {_SIZES["exit"]}:
        os._exit(3)
    return load(picture)

def deadly_loads(data, **options):
    if {MARK!r} in (data if isinstance(data, bytes) else data.encode()):
        ctypes.string_at(0)
    return loads(data, **options)

def deadly_batches(file, *arguments, **options):
    for batch in iter_batches(file, *arguments, **options):
        if any(isinstance(image, bytes) and {MARK!r} in image for image in batch.column(0).to_pylist()):
            os.abort()
        yield batch

PIL.ImageFile.ImageFile.load = deadly_load
json.loads = deadly_loads
pyarrow.parquet.ParquetFile.iter_batches = deadly_batches
"""


def install(folder: Path) -> dict[str, str]:
    """Write the module into a folder, and return the environment in which it works."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def deadly_bmp(how: str = "SIGSEGV") -> bytes:
    """Return a valid picture that ends its decoder by `SIGSEGV` or `exit`."""
    buffer = io.BytesIO()
    Image.new("L", _SIZES[how], 200).save(buffer, "BMP")
    return buffer.getvalue()
