"""Credentials that are renewed during a run are used from then on, wherever they come from."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.errors import RequestError
from infra.storage.input_files import list_input_files, open_input, read_input, s3_fingerprint, stat_input
from infra.storage.object_store import open_store
from tests.harness.s3_stub import Answer, Request, S3Stub, etag, refusal

pytest_plugins = ["tests.harness.gateways"]

DATA = b"picture"
FINGERPRINT = s3_fingerprint(len(DATA), etag(DATA))
EXPIRED = refusal(400, "ExpiredToken", "The provided token has expired.")


@pytest.fixture
def bucket(stub: S3Stub, monkeypatch: pytest.MonkeyPatch) -> S3Stub:
    """A stub with the object `a.png`, and without credentials in the environment."""
    stub.objects["pictures", "a.png"] = DATA
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return stub


@pytest.fixture
def write_file(bucket: S3Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write an access key to the shared credentials file, as a sidecar does."""
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def write(key: str) -> None:
        path.write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = canary\naws_session_token = of-{key}\n"
        )

    write("FIRST")
    return write


def use_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Take credentials from a process, and return what sets its next answer."""
    answer = tmp_path / "answer.json"
    program = tmp_path / "credentials.py"
    program.write_text(f"print(open({str(answer)!r}).read())")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    def write(key: str, **more: str) -> None:
        answer.write_text(json.dumps({"Version": 1, "AccessKeyId": key, "SecretAccessKey": "canary", **more}))

    return write


def read_image() -> None:
    assert read_input("s3://pictures/a.png", FINGERPRINT, 99) == DATA


def look_up() -> None:
    assert stat_input("s3://pictures/a.png") is not None


def read_container() -> None:
    with open_input("s3://pictures/a.png") as file:
        assert file.read() == DATA


def list_bucket() -> None:
    assert len(list(list_input_files("s3://pictures"))) == 1


ACTS = [read_image, look_up, read_container, list_bucket]


def test_rewritten_file_is_read_again(bucket: S3Stub, write_file: Callable[[str], None]) -> None:
    read_image()
    write_file("SECOND")
    read_image()
    assert [request.access_key for request in bucket.requests] == ["FIRST", "SECOND"]


def test_rewritten_file_reaches_the_store_of_pyarrow_and_delta(write_file: Callable[[str], None]) -> None:
    store = open_store("s3://pictures/store")
    before = store.arrow("x")[0]
    write_file("SECOND")
    options = store.delta("x/").storage_options
    assert (options["aws_access_key_id"], options["aws_session_token"]) == ("SECOND", "of-SECOND")
    assert store.arrow("x")[0] is not before


def test_file_that_is_being_rewritten_is_waited_for(
    bucket: S3Stub, write_file: Callable[[str], None], tmp_path: Path
) -> None:
    read_image()
    (tmp_path / "credentials").write_text("[default]\naws_access_key")
    read_image()
    (tmp_path / "credentials").unlink()
    read_image()
    write_file("SECOND")
    read_image()
    assert [request.access_key for request in bucket.requests] == ["FIRST", "FIRST", "FIRST", "SECOND"]


@pytest.mark.parametrize("act", ACTS)
def test_token_that_expires_while_its_successor_is_written_fails_nothing(
    bucket: S3Stub, write_file: Callable[[str], None], act: Callable[[], None]
) -> None:
    def expire(request: Request) -> Answer | None:
        if request.access_key == "FIRST":
            write_file("SECOND")
            return EXPIRED
        return None

    bucket.rules.append(expire)
    act()
    assert {request.access_key for request in bucket.requests} == {"FIRST", "SECOND"}


def test_expired_token_without_a_successor_fails_after_one_more_request(
    bucket: S3Stub, write_file: Callable[[str], None]
) -> None:
    bucket.rules.append(lambda _: EXPIRED)
    with pytest.raises(RequestError, match="expired") as error:
        read_image()
    assert len(bucket.requests) == 2
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("act", ACTS)
def test_process_without_an_expiration_is_asked_again_for_an_expired_token(
    bucket: S3Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]
) -> None:
    write = use_process(tmp_path, monkeypatch)
    write("FIRST")

    def expire(request: Request) -> Answer | None:
        write("SECOND")
        return EXPIRED if request.access_key == "FIRST" else None

    bucket.rules.append(expire)
    act()
    assert bucket.requests[-1].access_key == "SECOND"


def test_process_with_an_expiration_is_asked_before_it(
    bucket: S3Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = use_process(tmp_path, monkeypatch)
    soon = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # botocore refreshes 10 minutes before the end
    for key in ("FIRST", "SECOND"):
        write(key, Expiration=soon)
        read_image()
    assert bucket.requests[-1].access_key == "SECOND"


def test_container_is_read_to_its_end_although_the_token_changes(
    bucket: S3Stub, write_file: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.storage.input_files import s3_reader

    monkeypatch.setattr(s3_reader, "_SMALLEST_REQUEST_BYTES", 1)
    bucket.rules.append(lambda request: EXPIRED if request.access_key == "FIRST" and renewed else None)
    renewed: list[bool] = []
    with open_input("s3://pictures/a.png") as file:
        assert file.read(3) == DATA[:3]
        write_file("SECOND")
        renewed.append(True)
        assert file.read() == DATA[3:]
