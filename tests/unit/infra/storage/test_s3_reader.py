"""An S3 object is read like a file, and a read fails with the reason if the object is gone, changed or refused."""

import io
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import RequestError
from infra.storage.input_files import CHANGED, VANISHED, InputsUnavailable, InputUnreadable, open_input, s3_reader
from tests.harness.s3_stub import Answer, Request, S3Stub, etag, refusal

pytest_plugins = ["tests.harness.gateways"]

URI = "s3://pictures/a//b.bin"
ARCHIVED = refusal(403, "InvalidObjectState", "Not valid for the object's storage class", StorageClass="DEEP_ARCHIVE")


@pytest.fixture
def data(stub: S3Stub) -> bytes:
    """Contents of the object `URI`, which take several requests and aren't a multiple of anything."""
    contents = random.Random(5).randbytes(1_000_003)  # noqa: S311 (chance, not secrets)
    stub.objects["pictures", "a//b.bin"] = contents
    return contents


@pytest.fixture(params=[8 * 2**20, 64 * 2**10, 16_001], ids=lambda size: f"requests of {size}")
def request_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(s3_reader, "REQUEST_BYTES", request.param)
    monkeypatch.setattr(s3_reader, "_SMALLEST_REQUEST_BYTES", request.param // 4)
    size: int = request.param
    return size


def ranges(stub: S3Stub) -> list[str]:
    return [request.headers["Range"] for request in stub.requests if request.method == "GET"]


def test_bytes_at_any_position_are_those_of_the_object(data: bytes, request_bytes: int) -> None:
    chance = random.Random(request_bytes)  # noqa: S311 (chance, not secrets)
    with open_input(URI) as file:
        assert file.size() == len(data)
        for _ in range(30):
            start = chance.randrange(len(data) + 10)
            for size in (chance.randrange(3 * min(request_bytes, 20_000)), 1, 0):
                assert file.read_at(size, start) == data[start : start + size]
                start += size


@pytest.mark.parametrize("block", [3999, 40_000, 300_000])
def test_sequential_blocks_are_those_of_the_object(data: bytes, request_bytes: int, block: int) -> None:
    limit = 20 * block
    with open_input(URI) as file:
        assert b"".join(iter(lambda: file.read(block) if file.tell() < limit else b"", b"")) == data[:limit]


def test_seek_moves_the_position(data: bytes) -> None:
    with open_input(URI) as file:
        file.seek(-5, io.SEEK_END)
        assert file.read() == data[-5:]
        file.seek(10)
        file.seek(5, io.SEEK_CUR)
        assert (file.tell(), file.read(3)) == (15, data[15:18])


def test_threads_share_a_file(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_reader, "_SMALLEST_REQUEST_BYTES", 1000)
    with open_input(URI) as file, ThreadPoolExecutor(8) as threads:
        starts = [number * 20_011 for number in range(49)]
        found = list(threads.map(lambda start: file.read_at(5000, start), starts))
    assert found == [data[start : start + 5000] for start in starts]


def test_reading_from_start_to_end_is_read_ahead(data: bytes, stub: S3Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_reader, "REQUEST_BYTES", 200_000)
    monkeypatch.setattr(s3_reader, "_SMALLEST_REQUEST_BYTES", 1)
    with open_input(URI) as file:
        for start in range(0, 600_000, 100_000):
            file.read_at(100_000, start)
    assert ranges(stub)[:3] == ["bytes=0-99999", "bytes=100000-199999", "bytes=200000-399999"]


def test_large_read_is_split_into_requests_at_the_same_time(
    data: bytes, stub: S3Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_reader, "REQUEST_BYTES", 260_000)
    all_there = threading.Barrier(4, timeout=20)
    stub.rules.append(lambda request: all_there.wait() and None if request.method == "GET" else None)
    with open_input(URI) as file:
        assert file.read() == data
    assert len(ranges(stub)) == 4


def test_small_file_takes_one_request_for_its_bytes(data: bytes, stub: S3Stub) -> None:
    with open_input(URI, fetch=len(data)) as file:
        assert (file.read_at(5, 100), file.read_at(5, 900_000)) == (data[100:105], data[900_000:900_005])
    assert [request.method for request in stub.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("fetch", [0, 100])
def test_empty_object_is_an_empty_file(stub: S3Stub, fetch: int) -> None:
    stub.objects["pictures", "empty"] = b""
    with open_input("s3://pictures/empty", fetch=fetch) as file:
        assert (file.size(), file.read(), file.read_at(10, 0)) == (0, b"", b"")


@pytest.mark.parametrize("key", ["no.bin", ""])
def test_missing_object_has_vanished(data: bytes, key: str) -> None:
    with pytest.raises(InputUnreadable, match=r"^vanished: "):
        open_input(f"s3://pictures/{key}")


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    images = [bytes([number % 251]) * 5000 for number in range(400)]
    pq.write_table(pa.table({"image": images}), sink, row_group_size=100, compression="none", use_dictionary=False)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("answer", "failure", "text"),
    [
        (ARCHIVED, InputUnreadable, "archived: "),
        (refusal(403, "AccessDenied", "Access Denied"), InputUnreadable, "permission: "),
        (refusal(400, "KMS.DisabledException", "The key is disabled."), InputUnreadable, "refused: "),
        (refusal(404, "NoSuchKey", "The specified key does not exist."), InputUnreadable, VANISHED),
        (refusal(400, "ExpiredToken", "The provided token has expired."), RequestError, "s3://"),
        (refusal(503, "SlowDown", "Please reduce your request rate."), InputsUnavailable, "s3://"),
    ],
    ids=["archived", "denied", "disabled key", "gone", "expired", "overloaded"],
)
@pytest.mark.parametrize("how", ["footer", "prebuffered", "streamed"])
def test_failure_while_parquet_is_read_keeps_its_class(
    stub: S3Stub, how: str, answer: Answer, failure: type[Exception], text: str
) -> None:
    """pyarrow calls the reader from C++, in threads of its own. It may change what the reader raises."""
    stub.objects["pictures", "a.parquet"] = parquet_bytes()
    with open_input("s3://pictures/a.parquet") as file:
        if how == "footer":
            stub.refuse("a.parquet", answer)
        with pytest.raises(Exception, match=r".") as raised:  # noqa: PT012 (opening may fail, too)
            parquet = pq.ParquetFile(file, pre_buffer=how == "prebuffered", buffer_size=20_000 * (how == "streamed"))
            stub.refuse("a.parquet", answer)
            list(parquet.iter_batches(100, use_threads=False))
        assert isinstance(file.failure, failure)
        assert str(file.failure).startswith(text)
    assert isinstance(raised.value, failure)


def test_object_that_changes_between_two_requests_is_reported(data: bytes, stub: S3Stub) -> None:
    with open_input(URI) as file:
        assert file.read_at(5, 0) == data[:5]
        stub.objects["pictures", "a//b.bin"] = data[:-1] + b"!"
        with pytest.raises(InputUnreadable) as changed:
            file.read_at(5, 900_000)
    assert str(changed.value) == CHANGED


def test_object_that_becomes_shorter_is_reported_as_changed(data: bytes, stub: S3Stub) -> None:
    with open_input(URI) as file:
        stub.objects["pictures", "a//b.bin"] = data[:10]
        with pytest.raises(InputUnreadable, match=r"^changed: "):
            file.read_at(5, 900_000)


def test_object_that_changes_behind_what_is_read_does_no_harm(
    data: bytes, stub: S3Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_reader, "REQUEST_BYTES", 200_000)
    monkeypatch.setattr(s3_reader, "_SMALLEST_REQUEST_BYTES", 1)
    with open_input(URI) as file:
        file.read_at(100_000, 0)
        stub.rules.append(lambda request: ARCHIVED if request.headers["Range"].startswith("bytes=200000-") else None)
        assert file.read_at(100_000, 100_000) == data[100_000:200_000]
        assert file.failure is None


def test_broken_answer_is_completed_by_another_request(
    data: bytes, stub: S3Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_reader, "_PART_BYTES", 1000)
    requests = count()

    def cut(request: Request) -> Answer | None:
        if request.method == "HEAD" or next(requests) >= 10:  # more often than a request is attempted
            return None
        start = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{etag(data)}"', "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return Answer(206, data[start:], headers, cut_at=50_000)

    with open_input(URI) as file:
        stub.rules.append(cut)
        assert file.read() == data
    assert len(ranges(stub)) > 10


def test_answers_that_always_break_are_the_servers_failure(data: bytes, stub: S3Stub) -> None:
    with open_input(URI) as file:
        headers = {"ETag": f'"{etag(data)}"'}
        stub.rules.append(lambda _: Answer(206, data, headers, cut_at=0))
        with pytest.raises(InputsUnavailable) as unavailable:
            file.read_at(100, 0)
    assert URI in str(unavailable.value)


def test_server_that_ignores_ranges_is_refused(data: bytes, stub: S3Stub) -> None:
    with open_input(URI) as file:
        headers = {"ETag": f'"{etag(data)}"'}
        stub.rules.append(lambda _: Answer(200, data, headers))
        with pytest.raises(RequestError, match="Range"):
            file.read_at(100, 500)
