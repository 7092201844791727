"""Adapt this process's environment to the user's machine, for this process and those that it starts."""

import os
import pwd
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def adapt_environment() -> None:
    """Let proxies and user ids that lack a home folder work. Variables that the user has set stay in force."""
    _bypass_proxies_on_this_machine()
    _name_the_user()


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs, for processes that start in it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _bypass_proxies_on_this_machine() -> None:
    """Ask the servers of this machine directly. A proxy elsewhere can't reach them."""
    named = [name for name in os.environ if name.lower() in _PROXIES]
    for name in named:
        # httpx refuses to work at all with a SOCKS proxy that it has no driver for, and boto3 ignores such a proxy.
        if os.environ[name].lower().startswith("socks") and find_spec("socksio") is None:
            del os.environ[name]
    if named:
        bypassed = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
        hosts = [host.strip() for host in ",".join(bypassed).split(",")]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
            dict.fromkeys(filter(None, [*hosts, *_THIS_MACHINE]))
        )


def _name_the_user() -> None:
    """Give a user id without an entry in /etc/passwd a name and a home. Container platforms assign such ids."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", str(os.getuid()))
        os.environ.setdefault("HOME", "/")


def open_standard_streams() -> None:
    """Open the standard streams that the caller closed, and let them print any text.

    The next file that this process opens would otherwise take the place of a closed stream and receive its text.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    # A name that the terminal's encoding can't show must not end the command.
    if hasattr(sys.stdout, "reconfigure") and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")
