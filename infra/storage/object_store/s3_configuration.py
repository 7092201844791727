"""The S3 connection of a process, for boto3, pyarrow and delta-rs, in the driver and in every worker.

The configuration comes from the AWS SDK's own chain: environment, `~/.aws/config` and `~/.aws/credentials`, SSO,
container and instance roles. So the configuration of your other S3 tools works here too. boto3's session resolves it.
pyarrow's file system and delta-rs' options are built from the result.
"""

import os
import random
import threading
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.session import Session
    from mypy_boto3_s3 import S3Client

CHECKSUM_VARIABLE = "AWS_REQUEST_CHECKSUM_CALCULATION"

CONNECT_TIMEOUT_SECONDS = 5
MAX_ATTEMPTS = 8
"""Attempts at a request, the first included, unless AWS_MAX_ATTEMPTS is set. With a server that drops one request in
five, one in 400,000 fails for good. A server that refuses connections is given up on after about 3 s."""

_DELTA_TIMEOUTS = 3
"""Timeouts between two bytes that a whole request of delta-rs may take."""

_WORKER_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "FMNIST_S3_TIMEOUT_SECONDS",
)


AWS_ITSELF = "https://s3.amazonaws.com"
"""FMNIST_INPUT_ENDPOINT_URL for inputs on AWS while the store is elsewhere. Each bucket's region has its endpoint."""


@dataclass(frozen=True)
class InputSettings:
    """Settings with which inputs are read differently from the store."""

    endpoint_url: str | None = None
    profile: str | None = None
    region: str | None = None
    is_unsigned: bool = False
    requester_pays: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "InputSettings":
        """Return the part of the settings that is about inputs."""
        return cls(
            settings.input_endpoint_url,
            settings.input_profile,
            settings.input_region,
            settings.input_unsigned,
            settings.input_requester_pays,
        )

    @property
    def names(self) -> list[str]:
        """Names of the settings that replace those of the AWS SDK: `PROFILE` for FMNIST_INPUT_PROFILE and so on."""
        values = {"ENDPOINT_URL": self.endpoint_url, "PROFILE": self.profile, "REGION": self.region}
        return [name for name, value in values.items() if value]


@dataclass(frozen=True)
class S3Configuration:
    """The settings of all clients. Holds no secrets."""

    endpoint_url: str | None
    """None for AWS."""
    region: str
    profile: str | None
    addressing_style: Literal["auto", "path", "virtual"]
    """`path` (http://host/bucket/key) if an endpoint is set, since few private servers have a host name per bucket. The
    profile's `s3` section overrides it."""
    retry_mode: Literal["standard", "adaptive"]
    max_attempts: int
    """Includes the first attempt."""
    checksum_mode: Literal["when_supported", "when_required"]
    """`when_required` unless the environment overrides it. By default the SDKs send chunked bodies with a trailing
    checksum. Ceph refuses them (411), and some small servers store them corrupted."""
    ca_bundle: str | None
    """File of certificates for https."""
    read_timeout_seconds: float
    """Timeout between two bytes of an answer, after which the request is retried. A whole request may take longer."""


class S3Connection:
    """The S3 clients of a process, which share one botocore session and its credentials.

    Raises:
        botocore.exceptions.BotoCoreError: no credentials, no such profile, no region, or a malformed endpoint.
    """

    def __init__(self, settings: InputSettings | None = None) -> None:
        """Open a connection to the store, or with `settings` to the inputs."""
        import boto3
        from botocore.exceptions import InvalidConfigError, InvalidEndpointConfigurationError, NoCredentialsError

        from infra.storage.object_store.s3_credentials import follow_credentials

        self.settings = settings or InputSettings()
        session = _open_session(self.settings)
        self.configuration = _resolve(session, self.settings)
        if self.configuration.ca_bundle and not Path(self.configuration.ca_bundle).exists():
            raise InvalidConfigError(error_msg=f"AWS_CA_BUNDLE names {self.configuration.ca_bundle}, which is missing")
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        self._credentials: Credentials | None = None
        if not self.settings.is_unsigned:
            self._credentials = follow_credentials(session, lambda: _open_session(self.settings))
            if self._credentials is None:
                raise NoCredentialsError
        self.etag_is_quoted: dict[str, bool] = {}
        """Whether `If-Match` takes the ETag in quotes, by the root of each store where it was tested."""
        self.buckets_seen: set[str] = set()
        """Buckets known to exist."""
        try:
            self.client: S3Client = boto3.Session(botocore_session=session).client(
                "s3",
                endpoint_url=self.configuration.endpoint_url,
                region_name=self.configuration.region,
                config=_client_config(self.configuration, is_signed=self._credentials is not None),
            )
        except ValueError:  # its message may repeat a password in the URL
            raise InvalidEndpointConfigurationError(msg="not a URL") from None
        # botocore uses the handler's result, although its stubs declare none.
        self.client.meta.events.register("needs-retry.s3", cast(Any, self._delay_of_retry))
        self._lock = threading.Lock()
        self._arrow: tuple[Any, Any] = (None, None)

    @property
    def endpoint(self) -> str:
        """Scheme, host and port that requests go to."""
        parts = urlsplit(self.client.meta.endpoint_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def credentials_source(self) -> str:
        """Source of the credentials in the chain: `env`, `shared-credentials-file`, `sso`, `iam-role`, …"""
        return (self._credentials.method or "unknown") if self._credentials else "none"

    @property
    def access_key_id(self) -> str:
        """The public half of the current credentials."""
        return str(self._frozen_credentials().access_key)

    @property
    def reading_options(self) -> Any:
        """Parameters for each GET, HEAD and LIST."""
        return {"RequestPayer": "requester"} if self.settings.requester_pays else {}

    def arrow_filesystem(self) -> Any:
        """Return a `pyarrow.fs.S3FileSystem` with the current credentials.

        pyarrow takes credentials once and can't refresh them. So every call asks botocore, which refreshes credentials
        that expire within ten minutes, and builds a new file system if they have changed. Call this for each file you
        open, and keep the file system no longer than the file.
        """
        credentials = self._frozen_credentials()
        with self._lock:
            made_for, filesystem = self._arrow
            if made_for != credentials:
                filesystem = self._make_arrow_filesystem(credentials)
                self._arrow = (credentials, filesystem)
        return filesystem

    def delta_options(self, bucket: str) -> dict[str, str]:
        """Return delta-rs' `storage_options` for a bucket, with the current credentials.

        Both the credentials and the endpoint are always named. So delta-rs never asks the instance's metadata service,
        and doesn't read what this connection ignores from the environment.
        """
        credentials = self._frozen_credentials()
        configuration = self.configuration
        endpoint, is_virtual = self._delta_endpoint(bucket)
        options = {
            "aws_access_key_id": credentials.access_key,
            "aws_secret_access_key": credentials.secret_key,
            "aws_session_token": credentials.token,
            "aws_region": configuration.region,
            "aws_endpoint": endpoint,
            "aws_endpoint_url_s3": endpoint,
            "aws_virtual_hosted_style_request": str(is_virtual).lower(),
            "aws_allow_http": str(endpoint.startswith("http://")).lower(),
            "aws_skip_signature": "false",
            # A commit creates its file in the log on condition that nobody else has, and needs no table of locks.
            "aws_conditional_put": "etag",
            "aws_s3_allow_unsafe_rename": "false",
            "connect_timeout": f"{CONNECT_TIMEOUT_SECONDS}s",
            # delta-rs limits the whole request, and the other clients the time between two bytes.
            "timeout": f"{round(1000 * _DELTA_TIMEOUTS * configuration.read_timeout_seconds)}ms",
            "max_retries": str(configuration.max_attempts - 1),
            "backoff_config.init_backoff": "50ms",
            "backoff_config.max_backoff": "20s",
            "proxy_url": self._proxy(),
            "certificate_path": configuration.ca_bundle if endpoint.startswith("https://") else None,
        }
        return {name: value for name, value in options.items() if value}

    def _frozen_credentials(self) -> Any:
        from botocore.exceptions import NoCredentialsError

        if self._credentials is None:
            raise NoCredentialsError
        return self._credentials.get_frozen_credentials()

    def _delta_endpoint(self, bucket: str) -> tuple[str, bool]:
        """Return the endpoint for delta-rs, and whether it names the bucket in its host."""
        from botocore.utils import check_dns_name

        path = urlsplit(self.client.meta.endpoint_url).path.rstrip("/")
        style = self.configuration.addressing_style
        # A dot in the bucket's name would not match the certificate of AWS.
        if style == "path" or (style == "auto" and ("." in bucket or not check_dns_name(bucket))):
            return self.endpoint + path, False
        return self.endpoint.replace("://", f"://{bucket}.", 1) + path, True

    def _proxy(self) -> str | None:
        from botocore.utils import get_environ_proxies

        endpoint = self.client.meta.endpoint_url
        return cast("str | None", get_environ_proxies(endpoint).get(urlsplit(endpoint).scheme))

    def _delay_of_retry(
        self, attempts: int, response: Any, caught_exception: Any, request_dict: Any, **_: Any
    ) -> float | None:
        """Return the seconds to wait before the next attempt, or None to give up. Overrides botocore's own answer.

        botocore's standard mode has a quota of about 35 failures, which successes refill slowly. When it is used up,
        botocore stops retrying. That protects a service from a fleet of callers, but here it fails a run: with one
        answer in five lost, it happened within 1,600 requests. The limit of attempts per request is enough.
        """
        from botocore.exceptions import HTTPClientError

        from infra.storage.object_store.s3_credentials import reload_if_expired
        from infra.storage.object_store.s3_errors import is_throttling

        if attempts >= self.configuration.max_attempts:
            return None
        if reload_if_expired(self._credentials, response, request_dict):
            return 0
        status = response[0].status_code if response else 0
        throttles = status in (429, 503) or (status == 400 and is_throttling(response[1].get("Error", {}).get("Code")))
        if not throttles and status not in (500, 502, 504) and not isinstance(caught_exception, HTTPClientError):
            return None
        scale_seconds = 1.0 if throttles else 0.05
        return random.uniform(0, min(scale_seconds * 2.0 ** (attempts - 1), 20.0))  # noqa: S311 (chance, not secrets)

    def _make_arrow_filesystem(self, credentials: Any) -> Any:
        from pyarrow import fs

        configuration = self.configuration
        endpoint = urlsplit(configuration.endpoint_url or "")
        scheme = endpoint.scheme or "https"
        return fs.S3FileSystem(
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            session_token=credentials.token,
            region=configuration.region,
            scheme=scheme,
            endpoint_override=(endpoint.netloc + endpoint.path.rstrip("/")) or None,
            force_virtual_addressing=bool(endpoint.netloc) and configuration.addressing_style == "virtual",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            request_timeout=configuration.read_timeout_seconds,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=configuration.max_attempts),
            proxy_options=self._proxy(),
            tls_ca_file_path=configuration.ca_bundle if scheme == "https" else None,
        )


def s3_connection() -> S3Connection:
    """Return the connection of this process. It is replaced after a fork, and when the environment changes.

    Raises:
        botocore.exceptions.BotoCoreError: as `S3Connection`.
    """
    environment = _environment()
    with _connecting:
        return _connection(environment)


def input_connection() -> S3Connection:
    """Return the connection to inputs of this process. It is the store's, unless an FMNIST_INPUT_ setting is set.

    Raises:
        botocore.exceptions.BotoCoreError: as `S3Connection`.
        RequestError: a setting has an invalid value.
    """
    environment = _environment()
    with _connecting:
        return _input_connection(environment)


def _environment() -> int:
    # All SDKs in the process read it. pyarrow's reads it only when it creates a client.
    os.environ.setdefault(CHECKSUM_VARIABLE, "when_required")
    # Hashed, so that the keys of the cache hold no secrets.
    return hash(frozenset(item for item in os.environ.items() if _concerns_s3(item[0])))


def worker_environment() -> dict[str, str]:
    """Return the environment variables with which a process on another machine reaches S3 as this one does.

    They hold no credentials, because what a scheduler receives shows up in its state, logs and UI. Workers find
    credentials in the chain of their own machine.
    """
    found = {name: os.environ[name] for name in _WORKER_VARIABLES if name in os.environ}
    return found | {CHECKSUM_VARIABLE: os.environ.get(CHECKSUM_VARIABLE, "when_required")}


_connecting = threading.Lock()


@lru_cache(maxsize=4)
def _connection(_environment: int) -> S3Connection:
    return S3Connection()


@lru_cache(maxsize=4)
def _input_connection(environment: int) -> S3Connection:
    settings = InputSettings.of(load_settings())
    return _connection(environment) if settings == InputSettings() else S3Connection(settings)


def _forget() -> None:
    # A child can't use the sockets and locks of its parent.
    global _connecting  # noqa: PLW0603
    _connecting = threading.Lock()
    _connection.cache_clear()
    _input_connection.cache_clear()


os.register_at_fork(after_in_child=_forget)


def _concerns_s3(variable: str) -> bool:
    return variable.startswith(("AWS_", "FMNIST_S3_", "FMNIST_INPUT_")) or variable.lower().endswith("_proxy")


def _open_session(settings: InputSettings) -> "Session":
    from botocore.session import Session

    return Session(profile=settings.profile)


def _resolve(session: "Session", settings: InputSettings) -> S3Configuration:
    from botocore.exceptions import NoRegionError

    endpoint_url = _endpoint_url(session, settings)
    region = _region(session, settings)
    if not region and not endpoint_url and settings == InputSettings():
        raise NoRegionError
    s3_section: dict[str, Any] = session.get_config_variable("s3") or {}
    style = s3_section.get("addressing_style")
    return S3Configuration(
        endpoint_url=endpoint_url,
        # To a private server, the region is only a word in the signature. AWS redirects to the region of a bucket.
        region=region or "us-east-1",
        profile=session.profile,
        addressing_style=style if style in ("path", "virtual") else "path" if endpoint_url else "auto",
        retry_mode="adaptive" if session.get_config_variable("retry_mode") == "adaptive" else "standard",
        max_attempts=session.get_config_variable("max_attempts") or MAX_ATTEMPTS,
        checksum_mode=session.get_config_variable("request_checksum_calculation").lower(),
        ca_bundle=session.get_config_variable("ca_bundle"),
        read_timeout_seconds=load_settings().s3_timeout_seconds,
    )


def _region(session: "Session", settings: InputSettings) -> str | None:
    own = session.get_scoped_config().get("region") if settings.profile else None
    # botocore reads only AWS_DEFAULT_REGION. The other SDKs, including pyarrow's, read AWS_REGION.
    region = settings.region or own or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    return cast("str | None", region)


def _endpoint_url(session: "Session", settings: InputSettings) -> str | None:
    from botocore.configprovider import ConfiguredEndpointProvider

    if settings.endpoint_url:
        return None if settings.endpoint_url == AWS_ITSELF else settings.endpoint_url
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None

    def configured(environment: Any) -> str | None:
        provider = ConfiguredEndpointProvider(
            full_config=session.full_config,
            scoped_config=session.get_scoped_config(),
            client_name="s3",
            environ=environment,
        )
        return cast("str | None", provider.provide())

    # The profile was named for the inputs, and the environment for everything.
    return (configured({}) if settings.profile else None) or configured(os.environ)


def _moment(text: Any) -> datetime:
    """Parse a time in an answer. botocore tries several formats, which takes 76 ms per 1,000 keys instead of 12 ms."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):  # headers have another format
        from botocore.utils import parse_timestamp

        return parse_timestamp(text)


def _client_config(configuration: S3Configuration, *, is_signed: bool) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    s3_options: Any = {"addressing_style": configuration.addressing_style}
    if (configuration.endpoint_url or "").startswith("http://"):
        # Our bodies have a digest in a signed header, so they need no second one. Over https, that is the default. The
        # second digest took a fifth of the time of an upload to a server on the same machine.
        s3_options["payload_signing_enabled"] = False
    return Config(
        s3=s3_options,
        retries={"mode": configuration.retry_mode, "total_max_attempts": configuration.max_attempts},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=configuration.read_timeout_seconds,
        request_checksum_calculation=configuration.checksum_mode,
        max_pool_connections=32,
        tcp_keepalive=True,
        signature_version=None if is_signed else UNSIGNED,
        # `_endpoint_url` has found the right one.
        ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # the stubs lack it
    )
