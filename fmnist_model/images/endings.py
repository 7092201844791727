"""The endings of image files.

An ending only decides whether a file is worth reading. `fmnist_model.images.decode` goes by the content.
"""

from typing import Final

IMAGE_SUFFIXES: Final = frozenset(
    [
        ".png", ".apng",
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo",
        ".webp",
        ".gif",
        ".bmp", ".dib",
        ".tif", ".tiff",
        ".avif", ".avifs",
        ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
        ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
    ]
)  # fmt: skip
"""Endings of image files that can be decoded, in lower case. Matching ignores case."""

UNSUPPORTED_IMAGE_SUFFIXES: Final = frozenset(
    [
        ".heic", ".heif", ".heics", ".heifs", ".hif",
        ".jxl", ".jxr", ".wdp", ".hdp",
        ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".raf", ".orf", ".rw2", ".pef", ".srw",
        ".x3f", ".3fr", ".iiq", ".raw",
        ".svg", ".svgz", ".eps", ".ai", ".psd", ".psb", ".xcf", ".ico", ".cur", ".icns", ".tga", ".pcx", ".qoi", ".exr",
        ".hdr", ".dds", ".dcm", ".fits", ".fit", ".xbm", ".xpm", ".wmf", ".emf",
    ]
)  # fmt: skip
"""Endings of known image files that can't be decoded, in lower case. No ending is in both sets."""


def is_image_name(name: str) -> bool:
    """Return whether a file name, path or URI has the ending of an image file that can be decoded."""
    stem, dot, suffix = name.rpartition(".")  # pathlib takes ten times as long, which matters for millions of names
    return dot + suffix.lower() in IMAGE_SUFFIXES and stem[-1:] not in ("", "/")
