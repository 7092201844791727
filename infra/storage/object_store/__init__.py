"""Object stores: their interface, and `open_store`, which chooses the implementation."""

from infra.errors import RequestError
from infra.storage.object_store.delta_errors import explained_delta
from infra.storage.object_store.interface import (
    ConnectionBroken,
    DeltaLocation,
    ObjectExists,
    ObjectNotFound,
    ObjectStat,
    ObjectStore,
    Publication,
    StoreMisconfigured,
    StoreUnavailable,
    SwapConflict,
)

__all__ = [
    "ConnectionBroken",
    "DeltaLocation",
    "ObjectExists",
    "ObjectNotFound",
    "ObjectStat",
    "ObjectStore",
    "Publication",
    "StoreMisconfigured",
    "StoreUnavailable",
    "SwapConflict",
    "explained_delta",
    "open_store",
]


def open_store(root: str) -> ObjectStore:
    """Open the store at a root URI.

    Raises:
        RequestError: the URI's scheme is unknown.
    """
    scheme = root.partition("://")[0]
    if scheme == "file":
        from infra.storage.object_store.local import LocalObjectStore

        return LocalObjectStore(root)
    if scheme == "s3":
        from infra.storage.object_store.s3 import S3ObjectStore

        return S3ObjectStore(root)
    raise RequestError(
        f"FMNIST_STORE: {scheme}:// is not a known kind of store. Use file:///folder or s3://bucket/prefix."
    )
