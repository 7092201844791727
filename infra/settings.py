"""Settings: where things are. They come from the environment or a `.env` file, never from a flow's parameters."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from infra.errors import RequestError


def _absolute(path: str | Path) -> Path:
    # Unlike Path.expanduser, this leaves '~name' alone if no user has that name.
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111


def _store_uri(value: str) -> str:
    if "://" not in value:
        return f"file://{_absolute(value)}"
    scheme, _, rest = value.partition("://")
    host = rest.partition("/")[0]
    if "@" in host:
        raise ValueError("the URI has a user or password in it; use the AWS SDK's own settings instead")
    if scheme.lower() != "file":
        return value.rstrip("/")
    if host not in ("", "localhost"):
        raise ValueError(f"{value} names the host {host}; a file URI has three slashes: file:///{rest}")
    # The path isn't percent-encoded, unlike the paths in URIs of images.
    return f"file://{_absolute('/' + rest.partition('/')[2])}"


def _folders(value: str | Sequence[Path]) -> Sequence[Path]:
    if not isinstance(value, str):
        return value
    folders = [Path(folder) for folder in value.split(":") if folder]
    for folder in folders:
        if not folder.is_absolute():
            raise ValueError(f"{folder} is not an absolute path; separate several paths with a colon")
    return folders


def _endpoint_url(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if "@" in parts.netloc:
        raise ValueError("the URL has a user or password in it; use the AWS SDK's own settings instead")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{value} is not http://HOST:PORT or https://HOST")
    return value.rstrip("/")


class Settings(BaseSettings):
    """The settings of this project. Set each by an environment variable: `FMNIST_` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="FMNIST_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    store: Annotated[str, AfterValidator(_store_uri)] = Field(default="var/store", validate_default=True)
    """Root URI of the object store: `s3://bucket/prefix`, `file:///…` or a plain path."""

    ray_address: str | None = None
    """Address of a Ray cluster, `host:port` or `ray://host:port`. If not set, Ray starts for the run."""

    ray_max_cpus: int = Field(default=0, ge=0)
    """Number of CPUs that the cluster can grow to if work waits for them. 0 means that it doesn't grow."""

    ray_max_gpus: int = Field(default=0, ge=0)
    """Number of GPUs that the cluster can grow to if work waits for them. 0 means that it doesn't grow."""

    shared_folders: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders of inputs that all machines of the cluster mount at the same path, separated by colons."""

    s3_timeout_seconds: float = Field(default=20, ge=0.1, le=3600)
    """Timeout between two bytes of an S3 answer, after which the request is retried. Raise it for a slow server."""

    input_endpoint_url: Annotated[str | None, AfterValidator(_endpoint_url)] = None
    """S3 endpoint of the inputs, if it isn't the store's. `https://s3.amazonaws.com` is AWS in any region."""

    input_profile: str | None = None
    """AWS profile for the inputs, if it isn't the store's."""

    input_region: str | None = None
    """Region of the buckets with the inputs. On AWS, a bucket in another region is found without it."""

    input_unsigned: bool = False
    """Whether to read S3 inputs without credentials, as public buckets allow."""

    input_requester_pays: bool = False
    """Whether to read S3 inputs from buckets that charge the requester."""

    retries: int = Field(default=0, ge=0, le=10)
    """Retries of a step that failed with a transient error, with exponential backoff. Deployments set 3."""

    dataset_dir: Annotated[Path, AfterValidator(_absolute)] | None = None
    """Folder with the four Fashion-MNIST IDX files, plain or gzipped."""

    state_dir: Annotated[Path, AfterValidator(_absolute)] = Field(default=Path("var"), validate_default=True)
    """Folder for the state of this machine: the embedded Prefect server's database, and Ray Train's temporary files."""


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        RequestError: a setting has an invalid value, or the file `.env` can't be read.
    """
    try:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f".env: {Path('.env').absolute()} can't be read: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"FMNIST_{str(first['loc'][0]).upper()}: {first['msg']}") from None
