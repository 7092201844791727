"""Check that a Ray cluster listens at the configured address."""

import socket
from urllib.parse import urlsplit

from infra.errors import RequestError


def check_ray_address(address: str) -> None:
    """Check that something listens at a Ray address. Ray itself takes half a minute to notice that nothing does.

    Raises:
        RequestError: nothing listens there, or it is not an address.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if address == "auto":
        return
    if parts.scheme not in ("", "ray") or not parts.hostname or not parts.port:
        raise RequestError(f"FMNIST_RAY_ADDRESS: {address!r} is not a Ray address. Use host:6379 or ray://host:10001.")
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except OSError as error:
        raise RequestError(
            f"FMNIST_RAY_ADDRESS: nothing listens at {address} ({error.strerror or error}). Start the cluster, correct "
            "the address, or unset it to have Ray started for the run."
        ) from None
