"""Model versions and their aliases.

models/<name>/versions/00000012.json    immutable
models/<name>/aliases/champion.json     swapped by compare-and-set
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel

from infra.errors import RequestError
from infra.provenance import Provenance
from infra.storage.checkpoints import WEIGHTS, CheckpointCorrupt, read_file, read_record
from infra.storage.keys import alias_key, version_key, version_of, versions_folder
from infra.storage.object_store import ObjectExists, ObjectNotFound, ObjectStore, SwapConflict
from infra.storage.retries import retry_on

Alias = Literal["champion", "candidate"]
ALIASES: tuple[Alias, ...] = ("champion", "candidate")


class ModelNotFound(RequestError):
    """The model version or alias doesn't exist."""


class ModelVersion(BaseModel):
    """An immutable version of a model: a checkpoint and its metadata."""

    name: str
    version: int
    """Counts from 1 without gaps."""
    run_id: str
    epoch: int
    weights_sha256: str
    metrics: dict[str, float]
    """Metrics on the test images. Promotion compares `test_accuracy`."""
    parameters: dict[str, Any]
    data_version: str
    temperature: float = 1.0
    """Divides the logits before the softmax to calibrate the probabilities. 1 if none was fitted."""
    transform: int = 1
    """Version of the transform that decoded the images that the model was trained on."""
    provenance: Provenance


class AliasRecord(BaseModel):
    """The version that an alias points to."""

    version: int
    previous: int | None
    """Version that it pointed to before."""
    provenance: Provenance


class ModelRegistry:
    """The versions and aliases of the models in one store."""

    def __init__(self, store: ObjectStore, name: str = "fashion-mnist") -> None:
        self._store = store
        self.name = name

    def register(
        self,
        *,
        run_id: str,
        epoch: int,
        weights_sha256: str,
        metrics: Mapping[str, float],
        parameters: Mapping[str, Any],
        data_version: str,
        temperature: float = 1.0,
        transform: int = 1,
    ) -> ModelVersion:
        """Create the next version. If another process takes a number first, try the next one."""
        number = max(self.versions(), default=0)
        while True:
            number += 1
            version = ModelVersion(
                name=self.name,
                version=number,
                run_id=run_id,
                epoch=epoch,
                weights_sha256=weights_sha256,
                metrics=dict(metrics),
                parameters=dict(parameters),
                data_version=data_version,
                temperature=temperature,
                transform=transform,
                provenance=Provenance.now(),
            )
            try:
                self._store.create(version_key(self.name, number), version.model_dump_json(indent=2).encode())
            except ObjectExists:
                continue
            return version

    def versions(self) -> list[int]:
        """List the numbers of all versions, in order."""
        keys = (stat.key for stat in self._store.list(f"{versions_folder(self.name)}/"))
        return sorted(number for key in keys if (number := version_of(key)) is not None)

    def version(self, number: int) -> ModelVersion:
        """Read one version.

        Raises:
            ModelNotFound: it doesn't exist.
        """
        try:
            return ModelVersion.model_validate_json(self._store.read(version_key(self.name, number)))
        except ObjectNotFound:
            raise ModelNotFound(
                f"{self._store.root} has no version {number} of model {self.name}. `fmnist models list` shows all "
                "versions."
            ) from None

    def newest_first(self) -> Iterator[ModelVersion]:
        """Read all versions, the newest first."""
        return (self.version(number) for number in reversed(self.versions()))

    def alias(self, alias: Alias) -> AliasRecord | None:
        """Read an alias, or return None if it was never set."""
        try:
            return AliasRecord.model_validate_json(self._store.read(alias_key(self.name, alias)))
        except ObjectNotFound:
            return None

    def resolve(self, reference: str) -> ModelVersion:
        """Find a version by its number or by an alias.

        Raises:
            ModelNotFound: the reference is neither, or names nothing that exists.
        """
        if reference.isdecimal():
            return self.version(int(reference))
        for alias in ALIASES:
            if reference == alias:
                record = self.alias(alias)
                if record is None:
                    raise ModelNotFound(f"{self._store.root} has no {alias} yet. Train one with `fmnist train`.")
                return self.version(record.version)
        raise ModelNotFound(f"{reference!r} is not a model. Use a version number or one of {', '.join(ALIASES)}.")

    @retry_on(SwapConflict, attempts=10, longest_wait_seconds=1)
    def point(self, alias: Alias, version: int) -> AliasRecord:
        """Point an alias to a version.

        Raises:
            ModelNotFound: the version doesn't exist.
            SwapConflict: other processes moved the alias ten times in a row.
        """
        self.version(version)
        seen: str | None = None
        previous: int | None = None
        with suppress(ObjectNotFound):
            data, seen = self._store.read_with_etag(alias_key(self.name, alias))
            previous = AliasRecord.model_validate_json(data).version
        record = AliasRecord(version=version, previous=previous, provenance=Provenance.now())
        self._store.swap(alias_key(self.name, alias), record.model_dump_json(indent=2).encode(), seen=seen)
        return record


def read_weights(store: ObjectStore, version: ModelVersion) -> tuple[bytes, str]:
    """Read a version's weights, verify them, and return the URI of their checkpoint as well.

    Raises:
        CheckpointNotFound: its checkpoint is gone.
        CheckpointCorrupt: the file is missing, or isn't the one that was registered. The run may have rewritten it.
    """
    record = read_record(store, version.run_id, version.epoch)
    data, origin = read_file(store, record, WEIGHTS), store.uri(record.key)
    found = sha256(data).hexdigest()
    if found != version.weights_sha256:
        raise CheckpointCorrupt(
            f"{origin} holds weights with SHA-256 {found[:12]}…, but version {version.version} was registered with "
            f"{version.weights_sha256[:12]}…. Restore the object, or use another version."
        )
    return data, origin
