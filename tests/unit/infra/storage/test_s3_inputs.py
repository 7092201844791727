"""S3 inputs as other people keep them: refused objects, other regions, accounts, servers and access points."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.worker_environment import worker_environment
from infra.errors import RequestError
from infra.settings import load_settings
from infra.storage.input_files import (
    InputFile,
    InputUnreadable,
    list_input_files,
    open_input,
    read_input,
    s3_fingerprint,
    stat_input,
)
from infra.storage.object_store.s3_configuration import input_connection, s3_connection
from infra.storage.uris import percent_encode
from tests.harness.s3_stub import Answer, S3Stub, etag, refusal, s3_stub

pytest_plugins = ["tests.harness.gateways"]

DENIED = refusal(403, "AccessDenied", "Access Denied")
DATA = b"picture"


def fingerprint(data: bytes = DATA) -> str:
    return s3_fingerprint(len(data), etag(data))


def listed(location: str) -> list[str]:
    return [file.uri for file in list_input_files(location)]


@pytest.fixture
def bucket(stub: S3Stub) -> S3Stub:
    """A stub with the bucket `pictures`, which holds `a.png` and `x/b.png`."""
    stub.objects |= {("pictures", "a.png"): DATA, ("pictures", "x/b.png"): DATA}
    return stub


@pytest.fixture
def own_stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Stub]:
    """A stub that no connection knows yet, with the bucket `pictures`, which holds `a.png`."""
    with s3_stub() as server:
        server.use(monkeypatch)
        server.objects["pictures", "a.png"] = DATA
        yield server


# --- Refused objects ---

REFUSALS = [
    (refusal(403, "InvalidObjectState", "Not valid for its storage class", StorageClass="GLACIER"), 200, "archived"),
    (refusal(400, "KMS.DisabledException", "The key is disabled."), 200, "refused"),
    (refusal(400, "InvalidRequest", "It was stored using a form of Server Side Encryption."), 400, "refused"),
    (DENIED, 403, "permission"),
    (refusal(404, "NoSuchKey", "The specified key does not exist."), 404, "vanished"),
    (refusal(405, "MethodNotAllowed", headers={"x-amz-delete-marker": "true"}), 405, "vanished"),
]
"""Answer to GET, status of HEAD, and kind of the reason. HEAD of an archived object and of one whose key is disabled
succeeds: https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html."""
IDS = ["archived", "disabled key", "customer key", "denied", "gone", "deleted version"]


@pytest.mark.parametrize(("answer", "head_status", "kind"), REFUSALS, ids=IDS)
@pytest.mark.parametrize("act", ["image", "container", "small container"])
def test_refused_object_is_reported_with_its_kind(
    bucket: S3Stub, act: str, answer: Answer, head_status: int, kind: str
) -> None:
    bucket.refuse("a.png", answer, head=Answer(head_status) if head_status != 200 else None)

    with pytest.raises(InputUnreadable) as reason:  # noqa: PT012 (opening or reading may fail)
        if act == "image":
            read_input("s3://pictures/a.png", fingerprint(), 1000)
        else:
            with open_input("s3://pictures/a.png", fetch=1000 if act == "small container" else 0) as file:
                file.read()
    assert str(reason.value).partition(":")[0] == kind


@pytest.mark.parametrize(("answer", "head_status", "kind"), REFUSALS, ids=IDS)
def test_refused_list_entry_is_looked_up_without_failing_the_run(
    bucket: S3Stub, answer: Answer, head_status: int, kind: str
) -> None:
    bucket.refuse("a.png", answer, head=Answer(head_status) if head_status != 200 else None)

    if head_status == 200:
        assert stat_input("s3://pictures/a.png") == InputFile("s3://pictures/a.png", len(DATA), fingerprint())
    elif head_status == 404:
        assert stat_input("s3://pictures/a.png") is None
    else:
        with pytest.raises(InputUnreadable) as reason:
            stat_input("s3://pictures/a.png")
        assert str(reason.value).partition(":")[0] == kind


@pytest.mark.parametrize("status", [400, 403])
def test_object_whose_head_alone_is_refused_is_looked_up_by_reading(bucket: S3Stub, status: int) -> None:
    bucket.rules.append(lambda request: Answer(status) if request.method == "HEAD" else None)
    assert stat_input("s3://pictures/a.png") == InputFile("s3://pictures/a.png", len(DATA), fingerprint())


ACCOUNT = [
    refusal(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    refusal(403, "SignatureDoesNotMatch", "The request signature does not match the signature you provided."),
    refusal(403, "RequestTimeTooSkewed", "The difference between the request time and the server's time is too large."),
    refusal(400, "ExpiredToken", "The provided token has expired."),
    refusal(404, "NoSuchBucket", "The specified bucket does not exist"),
    refusal(403, "AccountProblem", "There is a problem with your AWS account."),
]


@pytest.mark.parametrize("answer", ACCOUNT, ids=["key", "secret", "clock", "token", "bucket", "account"])
@pytest.mark.parametrize("act", ["list", "stat", "image", "container"])
def test_trouble_of_the_account_fails_the_run(bucket: S3Stub, answer: Answer, act: str) -> None:
    bucket.rules.append(lambda _: answer)
    acts: dict[str, Any] = {
        "list": lambda: listed("s3://no-pictures/a.png"),
        "stat": lambda: stat_input("s3://no-pictures/a.png"),
        "image": lambda: read_input("s3://no-pictures/a.png", fingerprint(), 1000),
        "container": lambda: open_input("s3://no-pictures/a.png"),
    }
    with pytest.raises(RequestError) as error:
        acts[act]()
    assert "s3://no-pictures/a.png" in str(error.value)
    assert "stub-secret" not in str(error.value)


def test_denied_listing_fails_the_run(bucket: S3Stub) -> None:
    bucket.rules.append(lambda request: DENIED if request.is_listing else None)
    with pytest.raises(RequestError, match="s3:ListBucket"):
        listed("s3://pictures/x")


@pytest.mark.parametrize("status", [400, 403])
def test_refused_object_that_is_named_is_still_listed(bucket: S3Stub, status: int) -> None:
    bucket.refuse("a.png", DENIED, head=Answer(status))
    assert list(list_input_files("s3://pictures/a.png")) == [InputFile("s3://pictures/a.png", len(DATA), fingerprint())]


def test_folder_is_listed_if_only_its_own_name_is_refused(bucket: S3Stub) -> None:
    """Credentials for `x/*` alone get 403 for `x`."""
    bucket.refuse("x", DENIED, head=Answer(403))
    assert listed("s3://pictures/x") == ["s3://pictures/x/b.png"]


# --- Names ---

KEYS = [
    *("/leading.png", "a//b.png", "a/./b.png", "a/../b.png", "//", "two words.png", "a+b.png", "50%.png", "%2B.png"),
    *("\u00e9.png", "e\u0301.png", "trailing .png ", "new\nline.png", "#row=1.png", "a?b.png", "\U0001f455.png"),
]


@pytest.mark.parametrize("key", [key for key in KEYS if not key.endswith("/")])
def test_object_under_any_key_is_listed_and_read(stub: S3Stub, key: str) -> None:
    stub.objects |= {("pictures", name): name.encode() for name in KEYS}
    uri = f"s3://pictures/{percent_encode(key)}"

    [file] = list_input_files(uri)

    assert file.uri == uri
    assert stat_input(uri) == file
    assert read_input(uri, file.fingerprint, 99) == key.encode()
    with open_input(uri) as opened:
        assert opened.read() == key.encode()


def test_folder_with_two_slashes_is_another_one(stub: S3Stub) -> None:
    stub.objects |= {("pictures", "a//b.png"): DATA, ("pictures", "a/c.png"): DATA, ("pictures", "/d.png"): DATA}
    assert listed("s3://pictures/a//") == ["s3://pictures/a//b.png"]
    assert listed("s3://pictures/a/") == ["s3://pictures/a//b.png", "s3://pictures/a/c.png"]
    assert listed("s3://pictures//") == ["s3://pictures//d.png"]


def test_slash_too_many_after_a_folder_is_ignored(bucket: S3Stub) -> None:
    assert listed("s3://pictures/x//") == ["s3://pictures/x/b.png"]


@pytest.mark.parametrize("marker", ["x", "x/", "x_$folder$", "x/y/", "x/y_$folder$"])
def test_object_that_stands_for_a_folder_is_no_input(bucket: S3Stub, marker: str) -> None:
    """AWS's console writes `x/`, Hadoop `x_$folder$`, and others an empty `x`."""
    bucket.objects["pictures", marker] = b""
    assert listed("s3://pictures/x") == ["s3://pictures/x/b.png"]


def test_empty_object_is_listed_if_it_stands_for_no_folder(bucket: S3Stub) -> None:
    bucket.objects["pictures", "empty.png"] = b""
    assert listed("s3://pictures/empty.png") == ["s3://pictures/empty.png"]


# --- Settings of their own ---


def test_public_bucket_is_read_without_credentials(bucket: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(RequestError, match="FMNIST_INPUT_UNSIGNED=true"):
        listed("s3://pictures")
    monkeypatch.setenv("FMNIST_INPUT_UNSIGNED", "true")

    files = list(list_input_files("s3://pictures"))
    assert [read_input(file.uri, file.fingerprint, 99) for file in files] == [DATA, DATA]
    with open_input(files[0].uri) as opened:
        assert opened.read() == DATA
    assert not any("Authorization" in request.headers for request in bucket.requests)


def test_unsigned_inputs_leave_the_store_signed(bucket: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_INPUT_UNSIGNED", "true")
    s3_connection().client.get_object(Bucket="pictures", Key="a.png")
    assert bucket.requests[-1].access_key == "STUBACCESSKEY"


@pytest.mark.parametrize("pays", ["true", "false"])
def test_requester_pays_for_each_request_if_it_is_set(
    bucket: S3Stub, monkeypatch: pytest.MonkeyPatch, pays: str
) -> None:
    """Without the header, S3 denies access: https://docs.aws.amazon.com/AmazonS3/latest/userguide/RequesterPaysBuckets.html"""
    bucket.rules.append(lambda request: None if request.headers.get("x-amz-request-payer") == "requester" else DENIED)
    monkeypatch.setenv("FMNIST_INPUT_REQUESTER_PAYS", pays)
    if pays == "false":
        with pytest.raises(RequestError, match="FMNIST_INPUT_REQUESTER_PAYS=true"):
            listed("s3://pictures")
        return
    for location in ("s3://pictures", "s3://pictures/a.png", "s3://pictures/*.png"):
        for file in list_input_files(location):
            assert stat_input(file.uri) == file
            assert read_input(file.uri, file.fingerprint, 99) == DATA
            with open_input(file.uri) as opened:
                assert opened.read() == DATA


def test_inputs_come_from_another_server_with_another_profile(
    bucket: S3Stub, own_stub: S3Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text("[theirs]\naws_access_key_id = THEIRS\naws_secret_access_key = canary\n")
    bucket.use(monkeypatch)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("FMNIST_INPUT_ENDPOINT_URL", own_stub.endpoint)
    monkeypatch.setenv("FMNIST_INPUT_PROFILE", "theirs")
    monkeypatch.setenv("FMNIST_INPUT_REGION", "eu-west-3")

    assert listed("s3://pictures") == ["s3://pictures/a.png"]
    s3_connection().client.get_object(Bucket="pictures", Key="x/b.png")

    [theirs] = own_stub.requests[-1:]
    assert (theirs.access_key, theirs.region) == ("THEIRS", "eu-west-3")
    assert (bucket.requests[-1].access_key, bucket.requests[-1].region) == ("STUBACCESSKEY", "us-east-1")


def test_endpoint_and_region_of_the_inputs_profile_come_before_the_environment(
    bucket: S3Stub, own_stub: S3Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        f"[profile theirs]\naws_access_key_id = THEIRS\naws_secret_access_key = canary\n"
        f"endpoint_url = {own_stub.endpoint}\nregion = eu-west-3\n"
    )
    bucket.use(monkeypatch)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("FMNIST_INPUT_PROFILE", "theirs")

    assert listed("s3://pictures") == ["s3://pictures/a.png"]
    assert (own_stub.requests[-1].access_key, own_stub.requests[-1].region) == ("THEIRS", "eu-west-3")


def test_inputs_on_aws_while_the_store_is_elsewhere(stub: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_INPUT_ENDPOINT_URL", "https://s3.amazonaws.com")
    monkeypatch.setenv("FMNIST_INPUT_REGION", "eu-west-3")
    assert input_connection().endpoint == "https://s3.eu-west-3.amazonaws.com"
    assert input_connection().configuration.addressing_style == "auto"
    assert s3_connection().endpoint == stub.endpoint


def test_unknown_input_profile_is_named_with_its_setting(bucket: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_INPUT_PROFILE", "nobody")
    with pytest.raises(RequestError, match=r"nobody.*FMNIST_INPUT_PROFILE"):
        listed("s3://pictures")


def test_without_input_settings_the_store_and_the_inputs_share_a_connection(stub: S3Stub) -> None:
    assert input_connection() is s3_connection()


def test_input_settings_reach_the_workers_without_a_secret(stub: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_INPUT_ENDPOINT_URL", "https://theirs:9000/")
    monkeypatch.setenv("FMNIST_INPUT_PROFILE", "theirs")
    monkeypatch.setenv("FMNIST_INPUT_REGION", "eu-west-3")
    monkeypatch.setenv("FMNIST_INPUT_UNSIGNED", "1")
    monkeypatch.setenv("FMNIST_INPUT_REQUESTER_PAYS", "yes")
    here = load_settings()
    environment = worker_environment(here)

    for name in [name for name in os.environ if name.startswith("FMNIST_INPUT_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == here
    assert "stub-secret" not in str(environment)


# --- Regions ---

WRONG_REGION = {
    "301": lambda _: refusal(
        301,
        "PermanentRedirect",
        "The bucket you are attempting to access must be addressed using the specified endpoint.",
        headers={"x-amz-bucket-region": "eu-west-3"},
        Endpoint="pictures.s3.eu-west-3.amazonaws.com",
    ),
    "307": lambda _: refusal(
        307, "TemporaryRedirect", "Please re-send this request to the specified temporary endpoint.",
        headers={"x-amz-bucket-region": "eu-west-3"},
    ),
    "400": lambda method: refusal(
        400, "AuthorizationHeaderMalformed", "The region is wrong", Region="eu-west-3",
        headers={"x-amz-bucket-region": "eu-west-3"} if method == "HEAD" else {},
    ),
}  # fmt: skip
"""Answers to a signature for another region: https://docs.aws.amazon.com/AmazonS3/latest/userguide/Redirects.html and
https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html."""


@pytest.mark.parametrize("kind", WRONG_REGION)
@pytest.mark.parametrize("act", ["list", "stat", "image", "container"])
def test_bucket_in_another_region_is_found(own_stub: S3Stub, kind: str, act: str) -> None:
    own_stub.rules.append(lambda request: WRONG_REGION[kind](request.method) if request.region != "eu-west-3" else None)

    if act == "list":
        assert listed("s3://pictures/") == ["s3://pictures/a.png"]
    elif act == "stat":
        assert stat_input("s3://pictures/a.png") is not None
    elif act == "image":
        assert read_input("s3://pictures/a.png", fingerprint(), 99) == DATA
    else:
        with open_input("s3://pictures/a.png") as opened:
            assert opened.read() == DATA
    before = len(own_stub.requests)
    assert stat_input("s3://pictures/a.png") is not None
    assert [request.region for request in own_stub.requests[before:]] == ["eu-west-3"]  # it is remembered


@pytest.mark.parametrize("kind", WRONG_REGION)
@pytest.mark.parametrize("act", ["list", "stat", "image"])
def test_endpoint_of_another_region_is_reported_with_the_region_and_the_setting(
    own_stub: S3Stub, kind: str, act: str
) -> None:
    own_stub.rules.append(lambda request: WRONG_REGION[kind](request.method))
    with pytest.raises(RequestError, match=r"eu-west-3.*FMNIST_INPUT_REGION"):
        {
            "list": lambda: listed("s3://pictures/"),
            "stat": lambda: stat_input("s3://pictures/a.png"),
            "image": lambda: read_input("s3://pictures/a.png", fingerprint(), 99),
        }[act]()


# --- Access points ---

ACCESS_POINT = "arn:aws:s3:eu-west-3:123456789012:accesspoint/shoes"


def test_access_point_is_read_as_a_bucket(own_stub: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host names the access point: https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-usage-examples.html"""
    port = own_stub.endpoint.rpartition(":")[2]
    hosts: list[str] = []
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: (hosts.append(host), resolve("127.0.0.1", *more, **named))[1],
    )
    monkeypatch.setenv("FMNIST_INPUT_ENDPOINT_URL", f"http://s3.test:{port}")
    # The stub takes the first part of the path for the bucket, and an access point is in the host.
    own_stub.objects = {("a", "/b#.png"): DATA, ("a", "c.png"): DATA}

    with open_input(f"s3://{ACCESS_POINT}/a//b%23.png") as opened:
        assert opened.read() == DATA
    assert stat_input(f"s3://{ACCESS_POINT}/a/c.png") is not None
    assert set(hosts) == {"shoes-123456789012.s3.test"}
    assert {request.region for request in own_stub.requests} == {"eu-west-3"}
