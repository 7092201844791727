"""Where things are: read from the environment or a `.env` file, never from a flow's parameters."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import RequestError


def _absolute(path: str | Path) -> Path:
    # Unlike Path.expanduser, this leaves a name that begins with '~' and is no user's as it is.
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111


def _store_uri(value: str) -> str:
    if "://" not in value:
        return f"file://{_absolute(value)}"
    scheme, _, rest = value.partition("://")
    host = rest.partition("/")[0]
    if "@" in host:
        raise ValueError("has a user or password in it; leave those to the AWS SDK's own settings")
    if scheme.lower() != "file":
        return value.rstrip("/")
    if host not in ("", "localhost"):
        raise ValueError(f"{value} names the host {host}: a file URI has three slashes, file:///{rest}")
    # The path is taken as it is written, here as in every other URI of the project: nothing is percent-encoded.
    return f"file://{_absolute('/' + rest.partition('/')[2])}"


class Settings(BaseSettings):
    """The settings of this project; each is an environment variable of the same name in capitals, after `FMNIST_`."""

    model_config = SettingsConfigDict(
        env_prefix="FMNIST_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    store: Annotated[str, AfterValidator(_store_uri)] = Field(default="var/store", validate_default=True)
    """Root URI of the object store: `s3://bucket/prefix`, or `file:///…`, which a plain path stands for."""

    ray_address: str | None = None
    """Address of a Ray cluster, `host:port` or `ray://host:port`; without one, Ray is started for the run."""

    ray_max_cpus: int = Field(default=0, ge=0)
    """CPUs to which the cluster grows where work waits for them; 0: it has what it has."""

    ray_max_gpus: int = Field(default=0, ge=0)
    """GPUs to which it grows, likewise."""

    s3_timeout_seconds: float = Field(default=20, ge=0.1, le=3600)
    """Seconds without a byte after which a request to S3 is given up and tried again; raise it for a slow server."""

    retries: int = Field(default=0, ge=0, le=10)
    """How often a step that failed for a reason that may pass is tried again, later each time; deployments set 3."""

    dataset_dir: Annotated[Path, AfterValidator(_absolute)] | None = None
    """Folder with the four Fashion-MNIST IDX files, plain or gzipped."""

    state_dir: Annotated[Path, AfterValidator(_absolute)] = Field(default=Path("var"), validate_default=True)
    """Folder for what belongs to this machine alone: the embedded Prefect server's database, Ray Train's scratch."""


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        RequestError: a setting has a value that can't be meant.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"FMNIST_{str(first['loc'][0]).upper()}: {first['msg']}") from None
