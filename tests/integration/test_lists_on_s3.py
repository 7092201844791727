"""Lists name objects on S3 in every spelling, and an entry that can't be used doesn't stop the others."""

from collections import Counter
from typing import Any

import pytest

from infra.errors import RequestError
from infra.storage.input_files import NOT_THERE
from infra.storage.object_store import ObjectStore
from infra.storage.object_store.s3_configuration import s3_connection
from tasks.classification.inputs import check_inputs, list_files
from tasks.classification.options import ReadOptions
from tests.harness.s3_server import Exchange, S3Server, faulty_proxy

pytest_plugins = ["tests.harness.gateways"]

OPTIONS = ReadOptions()


@pytest.fixture
def prefix(moto_store: ObjectStore) -> str:
    """Bucket and prefix of some objects."""
    place = f"{moto_store.root.removeprefix('s3://')}/images"
    put(place, {"a.png": b"a", "my photo.png": b"photo", "50%25.png": b"percent", "x/b.png": b"b"})
    return place


def put(place: str, objects: dict[str, bytes]) -> None:
    bucket, _, prefix = place.partition("/")
    for name, data in objects.items():
        s3_connection().client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)


def listed(place: str, *entries: str, name: str = "list.txt") -> list[dict[str, Any]]:
    """Write a list beside the objects, and return its rows of `FILE_SCHEMA`."""
    put(place, {name: "\n".join(entries).encode()})
    return [file for batch in list_files([f"s3://{place}/{name}"], OPTIONS) for file in batch.to_pylist()]


@pytest.mark.parametrize("scheme", ["s3://", "S3://", "s3a://", "s3n://", "S3A://", "s3:/"])
@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("a.png", "a.png"),
        ("my photo.png", "my photo.png"),
        ("my%20photo.png", "my photo.png"),
        ("50%25.png", "50%2525.png"),
        ("50%2525.png", "50%2525.png"),
        ("x/b.png", "x/b.png"),
        ("x%2Fb.png", "x/b.png"),
    ],
)
def test_every_spelling_names_the_same_object(prefix: str, scheme: str, key: str, found: str):
    [file] = listed(prefix, f"{scheme}{prefix}/{key}")
    assert file["uri"] == f"s3://{prefix}/{found}"
    assert file["fingerprint"] != NOT_THERE


@pytest.mark.parametrize("entry", ["a.png", "./a.png", "../images/a.png", " a.png", "a.png 3", '"a.png" 3', "a.png\t3"])
def test_relative_entry_starts_at_the_folder_of_the_list(prefix: str, entry: str):
    [file] = listed(prefix, entry)
    assert (file["uri"], file["kind"], file["size"]) == (f"s3://{prefix}/a.png", "image", 1)
    assert file["label"] == (3 if "3" in entry else None)


@pytest.mark.parametrize("entry", ["x", "x/"])
def test_folder_in_a_list_has_a_reason_that_says_so(prefix: str, entry: str):
    first, second = listed(prefix, f"s3://{prefix}/{entry}", "a.png")
    assert first["kind"] == "unusable"
    assert first["fingerprint"].startswith("unreadable: it is a folder")
    assert second["kind"] == "image"


def test_entry_outside_the_bucket_does_not_stop_the_others(prefix: str):
    first, second = listed(prefix, "../" * 9 + "a.png", "a.png")
    assert (first["uri"], first["kind"]) == (f"s3://{prefix}/list.txt/line=1", "unusable")
    assert second["uri"] == f"s3://{prefix}/a.png"


def test_missing_object_is_an_image_that_is_not_there(prefix: str):
    assert [(file["kind"], file["fingerprint"] == NOT_THERE) for file in listed(prefix, "nowhere.png", "a.png")] == [
        ("image", True),
        ("image", False),
    ]


def test_list_of_which_nothing_exists_is_refused(prefix: str):
    listed(prefix, "nowhere.png 3", f"s3a://{prefix}/no/b.png 4")
    with pytest.raises(RequestError, match=rf"s3://{prefix}/list.txt.*nowhere.png.*s3://{prefix}/nowhere.png"):
        check_inputs([f"s3://{prefix}/list.txt"], OPTIONS)


def test_check_of_a_long_list_takes_few_requests(prefix: str, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch):
    put(prefix, {"list.csv": b"path,label\n" + b"a.png,3\n" * 5000})
    methods: Counter[str] = Counter()

    def count(exchange: Exchange) -> None:
        methods[exchange.method] += 1

    with faulty_proxy(moto_server, before=count) as proxy, monkeypatch.context() as patched:
        proxy.use(patched)
        check_inputs([f"s3://{prefix}/list.csv"], OPTIONS)
    assert methods.total() <= 100
