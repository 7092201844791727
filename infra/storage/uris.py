"""Canonical URIs: every input file has exactly one, whatever its location looks like.

A canonical URI is `file:///folder/name` or `s3://bucket/key`. It percent-encodes `%`, `#`, `?` and control characters,
and nothing else: `file:///shoes/größe 36 %231.jpg`. So a `#` always starts a fragment, `#row=` or `#member=`, which
names an image in the file.

Other programs write `file:/folder/name` (Java), `s3a://`, `s3n://` (Spark and Hadoop), or encode more characters. Such
spellings are accepted.

The folder of a local file is absolute and has no symbolic links. The file's own name is kept, even if it is a link. An
S3 key is never normalized, because `a//b` and `a/./b` are other objects than `a/b`.
"""

import os
import re
from collections.abc import Callable, Iterable

from infra.errors import RequestError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ONE_SLASH = re.compile(r"(file|s3[an]?):/(?!/)", re.IGNORECASE)
"""Start of a URI as Java writes it, and of one that went through a class for paths."""
_S3_SCHEMES = ("s3", "s3a", "s3n")
"""Schemes that mean S3. Spark and Hadoop use the last two."""
_ACCESS_POINT = re.compile(
    r"(arn:[^/:]+:s3[^/:]*:[^/:]*:[^/:]*:(?:outpost[/:][^/:]+[/:])?accesspoint[/:][^/:]+)(?:/|$)"
)
_TO_ENCODE = re.compile(r"[%#?\x00-\x1f\x7f-\x9f]")
_TO_ENCODE_IN_OTHER_SCHEMES = re.compile(r"[#\x00-\x1f\x7f-\x9f]")
_ENCODED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def real_folder(folder: str) -> str:
    """Resolve `.`, `..`, repeated slashes and symbolic links in the absolute path of a folder.

    Parts that don't exist are kept.
    """
    try:
        resolved = os.path.realpath(folder)
        os.fsencode(resolved).decode()
    except ValueError:  # a NUL, or a link to a folder whose name isn't UTF-8 and so can't be in a URI
        resolved = os.path.normpath(folder)
    return f"/{resolved.lstrip('/')}"  # POSIX lets a path start with two slashes


def canonical_uri(location: str, *, resolve_folder: Callable[[str], str] = real_folder) -> str:
    """Return the canonical URI of a file that a user or a list of images names.

    A path is taken as it is. A `file://` URI is percent-decoded, unless only the file with the undecoded name exists.
    A `%` without two hexadecimal digits, `#` and `?` are parts of the name. In `s3://bucket/key` the key is taken as
    it is, as the AWS CLI does. A location with another scheme or with a host is returned, but can't be opened.

    Args:
        location: path or URI.
        resolve_folder: `real_folder`, or a cached version of it to convert many locations. Don't keep the cache after
            that, because links can change.
    """
    first, *others = possible_uris(location, resolve_folder=resolve_folder)
    if first.startswith("file://") and others and not os.path.lexists(local_path(first)):
        return next((uri for uri in others if os.path.lexists(local_path(uri))), first)
    return first


def possible_uris(location: str, *, resolve_folder: Callable[[str], str] = real_folder) -> list[str]:
    """Return the canonical URIs that a location can stand for, without looking for the file.

    Two if the location is a URI with a `%` and two hexadecimal digits: for `file://` the decoded path and then the
    undecoded one, for `s3://` the undecoded key and then the decoded one. A location such as `file:/name` can also be
    a relative path. Otherwise one.

    Args:
        location: see `canonical_uri`.
        resolve_folder: see `canonical_uri`.
    """
    scheme = _SCHEME.match(location)
    if scheme is None and (short := _ONE_SLASH.match(location)):
        rest = location[short.end() :]
        uri = f"file:///{rest}" if short[1].lower() == "file" else f"s3://{rest}"
        return [*possible_uris(uri, resolve_folder=resolve_folder), _file_uri(location, resolve_folder)]
    if scheme is None:
        return [_file_uri(location, resolve_folder)]
    rest = location[scheme.end() :]
    if scheme[1].lower() in _S3_SCHEMES:
        return _distinct(f"s3://{percent_encode(key)}" for key in (rest, percent_decode(rest)))
    path = _absolute_path(rest) if scheme[1].lower() == "file" else None
    if path is None:
        return [_TO_ENCODE_IN_OTHER_SCHEMES.sub(_escape, location)]
    return _distinct(_file_uri(reading, resolve_folder) for reading in (percent_decode(path), path))


def canonical_from_raw(uri: str, *, resolve_folder: Callable[[str], str] = real_folder) -> str:
    """Return the canonical URI for a URI without percent-encoding, such as `ObjectStore.uri` and older plans have.

    Args:
        uri: `file://` or `s3://` URI, in which a `%` is part of the name.
        resolve_folder: see `canonical_uri`.
    """
    scheme, _, rest = uri.partition("://")
    path = _absolute_path(rest) if scheme.lower() == "file" else None
    return canonical_uri(uri if path is None else path, resolve_folder=resolve_folder)


def local_path(uri: str) -> str:
    """Return the path of a canonical file URI.

    Raises:
        RequestError: the URI has another scheme, or names another host.
    """
    scheme, _, rest = uri.partition("://")
    if scheme.lower() != "file":
        raise RequestError(f"{uri} has an unknown scheme. Use a file:// or s3:// URI, or a local path.")
    path = _absolute_path(rest)
    if path is None:
        host, _, inside = rest.partition("/")
        raise RequestError(f"{uri} names the host {host}. A file URI has three slashes: file:///{inside}")
    return percent_decode(path)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of a canonical S3 URI. The bucket can be the ARN of an access point.

    Raises:
        RequestError: the URI has no valid bucket, or contains a user or password.
    """
    place = uri.partition("://")[2]
    if access_point := _ACCESS_POINT.match(place):
        return access_point[1], percent_decode(place[access_point.end() :])
    bucket, _, key = place.partition("/")
    if "@" in bucket or ":" in bucket:
        # The URI isn't repeated, because it may hold a secret.
        raise RequestError("An s3:// input has a user or password in it. Use the AWS SDK's own settings instead.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise RequestError(f"{uri} names no bucket. An input on S3 is s3://bucket/key.")
    return bucket, percent_decode(key)


def percent_encode(text: str) -> str:
    """Encode `%`, `#`, `?` and control characters of a path, a key or the name of a member."""
    return _TO_ENCODE.sub(_escape, text)


def percent_decode(text: str) -> str:
    """Decode every `%` and its two hexadecimal digits. What isn't UTF-8 stays as it is."""
    return _ENCODED.sub(_unescape, text) if "%" in text else text


def _file_uri(path: str, resolve_folder: Callable[[str], str]) -> str:
    # Unlike Path.expanduser, this leaves '~name' alone if no user has that name.
    path = os.path.expanduser(path)  # noqa: PTH111
    if not path.startswith("/"):
        path = f"{os.getcwd()}/{path}"  # noqa: PTH109
    folder, _, name = path.rpartition("/")
    if name in ("", ".", ".."):
        return f"file://{percent_encode(resolve_folder(path))}"
    return f"file://{percent_encode(resolve_folder(folder or '/').rstrip('/'))}/{percent_encode(name)}"


def _absolute_path(rest: str) -> str | None:
    """Return the path in a file URI without its scheme, or None if the URI names a host."""
    host, slash, path = rest.partition("/")
    return f"/{path}" if slash and host.lower() in ("", "localhost") else None


def _distinct(uris: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(uris))


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())


def _unescape(found: re.Match[str]) -> str:
    try:
        return bytes.fromhex(found[0].replace("%", "")).decode()
    except UnicodeDecodeError:
        return found[0]
