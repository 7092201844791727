"""AWS credentials that follow the file they come from.

botocore refreshes credentials with a known end: of roles, SSO, and processes that return an expiration. It reads the
shared credentials file only once. But the programs that write short-lived credentials there, such as a sidecar, rewrite
the file before they expire.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError

if TYPE_CHECKING:
    from botocore.session import Session

_EXPIRED = frozenset(
    [
        *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"),
        *("InvalidAccessKeyId", "InvalidToken", "InvalidTokenId"),
    ]
)
"""Codes of S3 for credentials that were valid once, or may become valid."""


class FileCredentials(Credentials):
    """Credentials of a file or a process without an expiration. They are read again when the file changes."""

    def __init__(self, found: Credentials, load: Callable[[], Credentials | None], paths: list[str]) -> None:
        super().__init__(found.access_key, found.secret_key, found.token, found.method)
        self._load, self._paths = load, paths
        self._lock = threading.Lock()
        self._current = found.get_frozen_credentials()
        self._versions = self._file_versions()

    def get_frozen_credentials(self) -> Any:
        """Return the current credentials. Looking for a change takes 4 µs."""
        if self._file_versions() != self._versions:
            self.reload()
        return self._current

    def reload(self) -> None:
        """Read the credentials again. Keep the old ones if there are none, as while the file is being rewritten."""
        with self._lock:
            versions = self._file_versions()
            try:
                found = self._load()
            except BotoCoreError:
                return
            if found is not None and found.method == self.method:  # not those of the machine's role
                self._current, self._versions = found.get_frozen_credentials(), versions

    def _file_versions(self) -> list[tuple[int, int, int] | None]:
        return [_version(path) for path in self._paths]


def follow_credentials(session: "Session", open_session: Callable[[], "Session"]) -> Credentials | None:
    """Return a session's credentials. From now on, it follows the file that they come from.

    Args:
        session: a session that has made no client yet.
        open_session: opens another session with the same settings.

    Raises:
        BotoCoreError: the chain's settings are wrong.
    """
    found: Credentials | None = session.get_component("credential_provider").load_credentials()
    if type(found) is Credentials and found.method != "env":
        settings = [session.get_config_variable(name) for name in ("credentials_file", "config_file")]
        paths = [os.path.expanduser(path) for path in settings if path]  # noqa: PTH111 (as botocore does)
        load = lambda: open_session().get_component("credential_provider").load_credentials()  # noqa: E731
        found = FileCredentials(found, load, paths)
    session.register_component("credential_provider", _Known(found))
    return found


def reload_if_expired(credentials: Credentials | None, response: Any, request_dict: Any) -> bool:
    """Read the credentials again if S3 calls those of a request expired. Return whether to send it once more.

    Args:
        credentials: credentials of the request.
        response: the answer and its parsed body, or None without an answer.
        request_dict: the request, as botocore keeps it.
    """
    if not isinstance(credentials, FileCredentials) or not response:
        return False
    if response[1].get("Error", {}).get("Code") not in _EXPIRED:
        return False
    context = request_dict["context"]
    if context.get("fmnist_reloaded"):
        return False
    context["fmnist_reloaded"] = True
    credentials.reload()
    return True


@dataclass(frozen=True)
class _Known:
    """A chain that has been walked."""

    credentials: Credentials | None

    def load_credentials(self) -> Credentials | None:
        return self.credentials


def _version(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 (Path takes three times as long)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
