"""The one place that says how S3 is reached: for boto3 and for pyarrow, in the driver and in every worker.

Everything that the AWS SDK knows comes from its own chain, so that one configuration serves every tool of the user's:
environment, `~/.aws/config` and `~/.aws/credentials`, SSO, container and instance roles. boto3's session resolves it,
and pyarrow is told what came out.
"""

import os
import random
import threading
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from infra.settings import load_settings

if TYPE_CHECKING:
    from botocore.session import Session
    from mypy_boto3_s3 import S3Client

CHECKSUM_VARIABLE = "AWS_REQUEST_CHECKSUM_CALCULATION"

CONNECT_TIMEOUT_SECONDS = 5
MAX_ATTEMPTS = 8
"""A request, first try included, unless AWS_MAX_ATTEMPTS says another number. A server that drops one request in five
then fails one in 400,000 for good; one that refuses connections is given up after about 3 s."""

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


@dataclass(frozen=True)
class S3Configuration:
    """What both clients are made from; holds no secret."""

    endpoint_url: str | None
    """None for AWS itself."""
    region: str
    profile: str | None
    addressing_style: Literal["auto", "path", "virtual"]
    """`path` (http://host/bucket/key) wherever there is an endpoint, unless the profile's `s3` section says otherwise:
    few private servers have a name for each bucket."""
    retry_mode: Literal["standard", "adaptive"]
    max_attempts: int
    """First try included."""
    checksum_mode: Literal["when_supported", "when_required"]
    """`when_required` unless the environment says otherwise: what the SDKs send by default, chunked bodies with a
    trailing checksum, is refused by Ceph (411) and stored corrupted by some small servers."""
    ca_bundle: str | None
    """File of certificates for https."""
    read_timeout_seconds: float
    """Without a byte, after which a request is given up and tried again; as a whole it may take longer."""


class S3Connection:
    """One process's S3 clients, both made from one botocore session, with its credentials.

    Raises:
        botocore.exceptions.BotoCoreError: no credentials, no such profile, no region, or a malformed endpoint.
    """

    def __init__(self) -> None:
        import boto3
        import botocore.session
        from botocore.exceptions import InvalidEndpointConfigurationError, NoCredentialsError

        session = botocore.session.Session()
        self.configuration = _resolve(session)
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        self._credentials = credentials
        self.etag_is_quoted: dict[str, bool] = {}
        """Whether `If-Match` takes the ETag in quotes, by the root of each store where that was tried."""
        self.buckets_seen: set[str] = set()
        """Buckets that are known to exist."""
        try:
            self.client: S3Client = boto3.Session(botocore_session=session).client(
                "s3",
                endpoint_url=self.configuration.endpoint_url,
                region_name=self.configuration.region,
                config=_client_config(self.configuration),
            )
        except ValueError:  # its message may repeat a password in the URL
            raise InvalidEndpointConfigurationError(msg="not a URL") from None
        # What the handler returns is used, though botocore's stubs say that it returns nothing.
        self.client.meta.events.register("needs-retry.s3", cast(Any, self._delay_of_retry))
        self._lock = threading.Lock()
        self._arrow: tuple[Any, Any] = (None, None)

    @property
    def endpoint(self) -> str:
        """Where requests go: scheme, host and port."""
        parts = urlsplit(self.client.meta.endpoint_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def credentials_source(self) -> str:
        """Where in the chain the credentials were found: `env`, `shared-credentials-file`, `sso`, `iam-role`, …"""
        return self._credentials.method or "unknown"

    @property
    def access_key_id(self) -> str:
        """The public half of the credentials of this moment."""
        return str(self._credentials.get_frozen_credentials().access_key)

    def arrow_filesystem(self) -> Any:
        """The `pyarrow.fs.S3FileSystem` for the credentials of this moment.

        pyarrow takes credentials once and can't ask for new ones. So botocore is asked at each call, which refreshes
        what ends within ten minutes, and a new file system is made when they have changed. Whoever opens a file asks
        here first, and keeps no file system for longer than a file takes.
        """
        credentials = self._credentials.get_frozen_credentials()
        with self._lock:
            made_for, filesystem = self._arrow
            if made_for != credentials:
                filesystem = self._make_arrow_filesystem(credentials)
                self._arrow = (credentials, filesystem)
        return filesystem

    def _delay_of_retry(self, attempts: int, response: Any, caught_exception: Any, **_: Any) -> float | None:
        """Seconds to wait before the next try, or None where there is none; asked after botocore's own answer.

        botocore's standard mode stops retrying when a quota of some 35 failures is used up, faster than successes
        fill it again. That protects a service from a fleet of callers, but here it fails a run: with one answer in
        five lost, it happened within 1,600 requests. The bound on the attempts at each request is bound enough.
        """
        from botocore.exceptions import HTTPClientError

        status = response[0].status_code if response else 0
        if attempts >= self.configuration.max_attempts:
            return None
        if status not in (429, 500, 502, 503, 504) and not isinstance(caught_exception, HTTPClientError):
            return None
        scale_seconds = 1.0 if status in (429, 503) else 0.05
        return random.uniform(0, min(scale_seconds * 2.0 ** (attempts - 1), 20.0))  # noqa: S311 (chance, not secrets)

    def _make_arrow_filesystem(self, credentials: Any) -> Any:
        from botocore.utils import get_environ_proxies
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
            proxy_options=get_environ_proxies(self.client.meta.endpoint_url).get(scheme),
            tls_ca_file_path=configuration.ca_bundle if scheme == "https" else None,
        )


def s3_connection() -> S3Connection:
    """The connection of this process: made at first use, and made anew after a fork or where the environment changed.

    Raises:
        botocore.exceptions.BotoCoreError: as `S3Connection`.
    """
    # Both SDKs and every other tool in the process read it, pyarrow's as late as when a client is made.
    os.environ.setdefault(CHECKSUM_VARIABLE, "when_required")
    # A hash, so that the cache's keys hold no secrets.
    environment = hash(frozenset(item for item in os.environ.items() if _concerns_s3(item[0])))
    with _connecting:
        return _connection(environment)


def worker_environment() -> dict[str, str]:
    """The variables, none of them secret, with which a process on another machine reaches S3 as this one does.

    Credentials are not among them: what is handed to a scheduler shows up in its state, its logs and its pages. A
    worker finds them in its own machine's chain.
    """
    found = {name: os.environ[name] for name in _WORKER_VARIABLES if name in os.environ}
    return found | {CHECKSUM_VARIABLE: os.environ.get(CHECKSUM_VARIABLE, "when_required")}


_connecting = threading.Lock()


@lru_cache(maxsize=4)
def _connection(_environment: int) -> S3Connection:
    return S3Connection()


def _forget() -> None:
    # Sockets and locks of the parent are of no use in a child.
    global _connecting  # noqa: PLW0603
    _connecting = threading.Lock()
    _connection.cache_clear()


os.register_at_fork(after_in_child=_forget)


def _concerns_s3(variable: str) -> bool:
    return variable.startswith(("AWS_", "FMNIST_S3_")) or variable.lower().endswith("_proxy")


def _resolve(session: "Session") -> S3Configuration:
    from botocore.exceptions import NoRegionError

    endpoint_url = _endpoint_url(session)
    # botocore knows only the second of the two; the other SDKs, pyarrow's among them, know the first.
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
    if not region and not endpoint_url:
        raise NoRegionError
    s3_section: dict[str, Any] = session.get_config_variable("s3") or {}
    style = s3_section.get("addressing_style")
    return S3Configuration(
        endpoint_url=endpoint_url,
        region=region or "us-east-1",  # a private server's region is a mere word in the signature
        profile=session.profile,
        addressing_style=style if style in ("path", "virtual") else "path" if endpoint_url else "auto",
        retry_mode="adaptive" if session.get_config_variable("retry_mode") == "adaptive" else "standard",
        max_attempts=session.get_config_variable("max_attempts") or MAX_ATTEMPTS,
        checksum_mode=session.get_config_variable("request_checksum_calculation").lower(),
        ca_bundle=session.get_config_variable("ca_bundle"),
        read_timeout_seconds=load_settings().s3_timeout_seconds,
    )


def _endpoint_url(session: "Session") -> str | None:
    from botocore.configprovider import ConfiguredEndpointProvider

    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    return cast("str | None", provider.provide())


def _moment(text: Any) -> datetime:
    """A time as S3 writes it. botocore tries one format after the other: 76 ms a page of 1,000 keys, instead of 12."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):  # in headers it is written otherwise
        from botocore.utils import parse_timestamp

        return parse_timestamp(text)


def _client_config(configuration: S3Configuration) -> Any:
    from botocore.config import Config

    s3_options: Any = {"addressing_style": configuration.addressing_style}
    if (configuration.endpoint_url or "").startswith("http://"):
        # Over https that is the default for bodies that carry a digest in a signed header, as all of ours do. A second
        # one cost a fifth of the time of an upload to a server on the same machine.
        s3_options["payload_signing_enabled"] = False
    return Config(
        s3=s3_options,
        retries={"mode": configuration.retry_mode, "total_max_attempts": configuration.max_attempts},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=configuration.read_timeout_seconds,
        request_checksum_calculation=configuration.checksum_mode,
        max_pool_connections=32,
        tcp_keepalive=True,
    )
