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
    """No such version or alias."""


class ModelVersion(BaseModel):
    """An immutable version of a model: a checkpoint, and what is known of it."""

    name: str
    version: int
    """1 for the first, then without gaps."""
    run_id: str
    epoch: int
    weights_sha256: str
    metrics: dict[str, float]
    """On the test images; `test_accuracy` is what promotion goes by."""
    parameters: dict[str, Any]
    data_version: str
    temperature: float = 1.0
    """That calibrates its probabilities: it divides the logits before the softmax. 1 where none was fitted."""
    provenance: Provenance


class AliasRecord(BaseModel):
    """Which version an alias points to, and how that came."""

    version: int
    previous: int | None
    """The version it pointed to before."""
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
    ) -> ModelVersion:
        """Make the next version. Whoever creates a number's object first has it; the others try the next one."""
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
                provenance=Provenance.now(),
            )
            try:
                self._store.create(version_key(self.name, number), version.model_dump_json(indent=2).encode())
            except ObjectExists:
                continue
            return version

    def versions(self) -> list[int]:
        """The numbers of all versions, in order."""
        keys = (stat.key for stat in self._store.list(f"{versions_folder(self.name)}/"))
        return sorted(number for key in keys if (number := version_of(key)) is not None)

    def version(self, number: int) -> ModelVersion:
        """Read one version.

        Raises:
            ModelNotFound: there is no such version.
        """
        try:
            return ModelVersion.model_validate_json(self._store.read(version_key(self.name, number)))
        except ObjectNotFound:
            raise ModelNotFound(
                f"{self._store.root} has no version {number} of model {self.name}; `fmnist models list` shows what it "
                "has."
            ) from None

    def newest_first(self) -> Iterator[ModelVersion]:
        """Read all versions."""
        return (self.version(number) for number in reversed(self.versions()))

    def alias(self, alias: Alias) -> AliasRecord | None:
        """Read an alias, or None where it was never set."""
        try:
            return AliasRecord.model_validate_json(self._store.read(alias_key(self.name, alias)))
        except ObjectNotFound:
            return None

    def resolve(self, reference: str) -> ModelVersion:
        """Find a version by its number or by an alias.

        Raises:
            ModelNotFound: it is neither, or there is no such version yet.
        """
        if reference.isdecimal():
            return self.version(int(reference))
        for alias in ALIASES:
            if reference == alias:
                record = self.alias(alias)
                if record is None:
                    raise ModelNotFound(f"{self._store.root} has no {alias} yet: train one with `fmnist train`.")
                return self.version(record.version)
        raise ModelNotFound(f"{reference!r} names no model: give a version's number, or one of {', '.join(ALIASES)}.")

    @retry_on(SwapConflict, attempts=10, longest_wait_seconds=1)
    def point(self, alias: Alias, version: int) -> AliasRecord:
        """Let an alias point to a version.

        Raises:
            ModelNotFound: there is no such version.
            SwapConflict: others moved the alias ten times in a row.
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
    """Read a version's weights, as they were when it was registered, and where they lie.

    Raises:
        CheckpointNotFound: its checkpoint is gone.
        CheckpointCorrupt: the file is missing or has other bytes, be it that its run has written it anew since.
    """
    record = read_record(store, version.run_id, version.epoch)
    data, origin = read_file(store, record, WEIGHTS), store.uri(record.key)
    found = sha256(data).hexdigest()
    if found != version.weights_sha256:
        raise CheckpointCorrupt(
            f"{origin} holds weights with SHA-256 {found[:12]}…, but version {version.version} was registered with "
            f"{version.weights_sha256[:12]}…. Restore the object, or take another version."
        )
    return data, origin
