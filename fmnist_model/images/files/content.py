"""Tell the format of a file by its content.

What is decoded, and why: PNG, JPEG, WebP, GIF, BMP and TIFF are what people have. AVIF and JPEG 2000 come with Pillow,
and so does Netpbm (PBM, PGM, PPM, PFM), in which many data sets are published. Each has a signature, and Pillow decodes
it inside the process. Formats without a signature (TGA) could be anything. Some need another program (EPS, WMF).
"""

import re
from typing import Final

from fmnist_model.images.rejected import ImageRejected

_SIGNATURES: Final = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "TIFF"),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), "JPEG2000"),
    (re.compile(rb"P[1-6f]\s+(?:#|\d)"), "PPM"),
)
"""Signature and Pillow's name of each format that is decoded. `ftyp` files differ by their brands."""

_SVG: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml.{0,4000}?<)?(?:!--.{0,4000}?<)?(?:!DOCTYPE )?svg\b", re.DOTALL
)

_UNSUPPORTED: Final = (
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG XL"),
    (re.compile(rb"II\xbc"), "JPEG XR"),
    (re.compile(rb"8BPS"), "Photoshop (PSD)"),
    (re.compile(rb"\x76\x2f\x31\x01"), "OpenEXR"),
    (re.compile(rb"#\?RADIANCE|#\?RGBE"), "Radiance HDR"),
    (re.compile(rb".{128}DICM", re.DOTALL), "DICOM"),
    (re.compile(rb"FUJIFILMCCD-RAW"), "a raw photo"),
    (re.compile(rb"%PDF-"), "PDF"),
    (_SVG, "SVG"),
    (re.compile(rb"\x1a\x45\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]|FLV\x01|OggS", re.DOTALL), "video"),
)  # fmt: skip
"""Signature and name of each known format that is not decoded."""

_ARCHIVES: Final = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "Zstandard"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\0"), "XZ"),
)

_WEB_PAGE: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)", re.IGNORECASE)

_AVIF_BRANDS: Final = frozenset([b"avif", b"avis"])
_HEIC_BRANDS: Final = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"])
_STILL_BRANDS: Final = frozenset([b"mif1", b"mif2", b"msf1", b"miaf"])

_MAX_LEADING_BYTES: Final = 512
"""Bytes before a JPEG that are skipped. Some cameras and servers put some there."""


def identify(data: bytes) -> str:
    """Return Pillow's name of the format of a file.

    Raises:
        ImageRejected: the file is not an image, or of a format that can't be decoded. The reason says what it is.
    """
    for signature, name in _SIGNATURES:
        if signature.match(data):
            return name
    if data[4:8] == b"ftyp":
        return _identify_by_brand(data)
    for signature, name in _UNSUPPORTED:
        if signature.match(data):
            raise ImageRejected(f"unsupported: {name}. Convert it to PNG or JPEG.")
    for signature, name in _ARCHIVES:
        if signature.match(data):
            raise ImageRejected(f"unsupported: a file compressed with {name}. Decompress it.")
    if _WEB_PAGE.match(data):
        raise ImageRejected("not an image: a web page (HTML)")
    if data.startswith(b"PK\x03\x04"):
        raise ImageRejected("not an image: a ZIP file")
    if b"\xff\xd8\xff" in data[: _MAX_LEADING_BYTES + 3]:
        return "JPEG"
    raise ImageRejected("not an image: no known format")


def _identify_by_brand(data: bytes) -> str:
    """Tell AVIF from HEIC and video. All are boxes, and the first lists brands."""
    length = min(int.from_bytes(data[:4], "big"), 1024)
    major = data[8:12]
    brands = {major} | {data[start : start + 4] for start in range(16, length, 4)}
    if brands & _AVIF_BRANDS and major not in _HEIC_BRANDS:
        return "AVIF"
    if brands & (_HEIC_BRANDS | _STILL_BRANDS):
        raise ImageRejected("unsupported: HEIC or HEIF. Convert it to JPEG or PNG.")
    if major == b"crx ":
        raise ImageRejected("unsupported: a raw photo. Convert it to PNG or JPEG.")
    raise ImageRejected("unsupported: video. Extract its frames as PNG or JPEG.")
