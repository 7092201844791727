"""Choose the folder for Ray's sockets, logs and spilled objects.

Ray puts them below TMPDIR. The system allows 107 bytes for the path of a socket, and Ray's own part takes 65 to 75.
"""

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import RequestError

_SOCKET_BYTES = 107
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 # a private folder is made in one of them


@dataclass(frozen=True)
class RayFolder:
    """The folder that Ray uses."""

    chosen: Path
    """The folder that TMPDIR names."""
    short: Path | None
    """Private folder for the sockets and logs, if the path of the chosen one is too long for sockets."""
    dashboard: bool

    def options(self) -> dict[str, Any]:
        """Return the arguments for `ray.init`."""
        if self.short is None:
            return {}
        return {"_temp_dir": str(self.short), "object_spilling_directory": str(self.chosen)}

    def variables(self) -> dict[str, str]:
        """Return variables for Ray's processes. The dashboard's processes put sockets below TMPDIR themselves."""
        return {"TMPDIR": str(self.short.parent)} if self.short and self.dashboard else {}


def ray_folder(*, dashboard: bool = False) -> RayFolder:
    """Choose Ray's folder.

    Args:
        dashboard: whether Ray starts with its dashboard, whose sockets have longer names.

    Raises:
        RequestError: the folder that TMPDIR names can't be used, or its path is too long and no other folder can be.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    chosen = Path(os.environ.get(name) or _SHORT_FOLDERS[0]).absolute()
    try:
        with tempfile.TemporaryFile(dir=chosen):
            pass
    except OSError as error:
        raise RequestError(
            f"{name}: {chosen} can't be written: {error.strerror}. Create it, make it writable, or set another folder."
        ) from None
    longest = _SOCKET_BYTES - len(_own_part("dash_UsageStatsHead" if dashboard else "plasma_store"))
    if len(os.fsencode(chosen)) <= longest:
        return RayFolder(chosen, None, dashboard)
    for folder in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), *_SHORT_FOLDERS)):
        short = _private_folder(Path(folder), longest)
        if short is not None:
            return RayFolder(chosen, short, dashboard)
    raise RequestError(
        f"{name}: the path {chosen} is too long for Ray's sockets, and /tmp can't be written. Set a folder with a path "
        f"of at most {longest} bytes."
    )


def _own_part(socket: str) -> str:
    """Return the part of a socket's path that Ray adds to the folder."""
    return f"/ray/session_2026-11-23_02-36-11_123456_{os.getpid()}/sockets/{socket}"


def _private_folder(parent: Path, longest: int) -> Path | None:
    """Create a folder that only this user can enter, or return None if that's impossible here."""
    folder = parent / f"fmnist-{os.getuid()}"
    if len(os.fsencode(folder)) > longest:
        return None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    # Another user may have created it, to read what Ray writes.
    is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    # Ray opens the folder that it gets to everybody, so it gets one inside.
    return folder / "ray" if is_private and os.access(folder, os.W_OK) else None
