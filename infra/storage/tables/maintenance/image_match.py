"""Match the `image` column against an image, a file with all its images, or a glob."""

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate

from infra.errors import RequestError
from infra.storage.uris import percent_decode, percent_encode, possible_uris

_FRAGMENT = re.compile(r"#(?:row=\d+|member=.*)\Z", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_GLOB_SIGN = re.compile(r"[*?\[]")
_AFTER_ALL = chr(0x10FFFF)


@dataclass(frozen=True)
class ImageMatch:
    """The images that a user names."""

    uris: tuple[str, ...]
    """URIs of images or files. A file stands for all its images."""
    globs: tuple[tuple[str, re.Pattern[str]], ...] = ()
    """Start of the decoded URI of a file, and a pattern for what follows it."""

    def matches(self, images: pa.Array) -> pa.Array:
        """Return for each URI whether it is one of the images.

        Args:
            images: URIs of images, `string[n]`.

        Returns:
            `bool[n]`.
        """
        found = pc.is_in(images, value_set=pa.array(self.uris, pa.string()))
        for uri in self.uris:
            if not _FRAGMENT.search(uri):
                found = pc.or_(found, pc.or_(*(pc.starts_with(images, f"{uri}#{key}=") for key in ("row", "member"))))
        if self.globs:
            by_glob = [self._matches_glob(image) for image in images.to_pylist()]
            found = pc.or_(found, pa.array(by_glob, pa.bool_()))
        return found

    def may_match(self, first: str | None, last: str | None) -> bool:
        """Whether one of the images can be between two URIs of a part. None means that a bound is unknown."""
        starts = [*(_FRAGMENT.sub("", uri) for uri in self.uris), *(percent_encode(start) for start, _ in self.globs)]
        # Parts from before Delta Lake have URIs without percent-encoding.
        spellings = {spelling for start in starts for spelling in (start, percent_decode(start))}
        return any(
            (last is None or last >= start) and (first is None or first <= start + _AFTER_ALL) for start in spellings
        )

    def _matches_glob(self, image: str) -> bool:
        for uri in {image, _FRAGMENT.sub("", image)}:
            decoded = percent_decode(uri)
            if any(decoded.startswith(start) and glob.fullmatch(decoded, len(start)) for start, glob in self.globs):
                return True
        return False


def image_match(location: str) -> ImageMatch:
    """Understand what a user writes for the images to remove.

    Args:
        location: an image's URI as it is in the table, a path or URI as `fmnist classify` takes it, or such a glob. It
            may end with `#row=N` or `#member=NAME`.

    Raises:
        RequestError: it is empty, or an invalid glob.
    """
    if not location:
        raise RequestError("--image is empty. Name an image, a file or a glob.")
    fragment = match[0] if (match := _FRAGMENT.search(location)) else ""
    file = location.removesuffix(fragment)
    named = [location, *(uri + fragment for uri in possible_uris(file)), *(possible_uris(location) if fragment else [])]
    return ImageMatch(tuple(dict.fromkeys(named)), _globs(location) if _GLOB_SIGN.search(location) else ())


def _globs(location: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    start = _GLOB_SIGN.split(location, maxsplit=1)[0].rfind("/") + 1
    folder, pattern = location[:start] or "./", location[start:]
    scheme = _SCHEME.match(location)
    on_disk = scheme is None or scheme[1].lower() == "file"
    readings = [percent_decode(pattern), pattern] if scheme else [pattern]
    found: dict[tuple[str, str], re.Pattern[str]] = {}
    for uri in possible_uris(folder):
        decoded = f"{percent_decode(uri).removesuffix('/')}/" if on_disk else percent_decode(uri)
        for reading in readings:
            try:
                found[decoded, reading] = re.compile(glob_translate(reading))
            except (ValueError, re.error) as error:
                raise RequestError(f"--image {location} is not a glob: {error}.") from None
    return tuple((start, pattern) for (start, _), pattern in found.items())
