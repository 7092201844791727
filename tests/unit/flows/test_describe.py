"""`fmnist describe` explains in one line why it can't use an image."""

from pathlib import Path

import pytest
from PIL import Image

from flows.cli.describe import _read_image
from fmnist_model.errors import InvalidImage
from fmnist_model.images import decode


def test_unexpected_exception_in_an_image_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(picture: Image.Image) -> Image.Image:
        raise AttributeError("two\nlines")

    monkeypatch.setattr(decode, "_to_model_input", fail)
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.jpg")
    with pytest.raises(InvalidImage) as error:
        _read_image(str(tmp_path / "odd.jpg"))
    assert "odd.jpg" in str(error.value)
    assert "AttributeError: two lines" in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_exif_is_read(tmp_path: Path) -> None:
    resolution = b"II*\0\x08\0\0\0\3\0" + b"".join(
        tag + count + value
        for tag, count, value in (
            (b"\x12\1\3\0", b"\1\0\0\0", b"\6\0\0\0"),
            (b"\x1a\1\1\0", b"\1\0\0\0", b"\1\0\0\0"),
            (b"\x28\1\3\0", b"\1\0\0\0", b"\2\0\0\0"),
        )
    )
    Image.new("RGB", (40, 30), "white").save(tmp_path / "odd.jpg", exif=b"Exif\0\0" + resolution + bytes(4))
    assert _read_image(str(tmp_path / "odd.jpg")).min() == 255
