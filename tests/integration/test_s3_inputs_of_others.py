"""Inputs on S3 that other people made: odd keys, archives, public buckets, other servers, self-signed certificates."""

import io
import ssl
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import RequestError
from infra.storage.input_files import list_input_files
from infra.storage.object_store import ObjectStore, StoreMisconfigured
from infra.storage.object_store.s3_configuration import s3_connection
from infra.storage.store_check import check_store
from infra.storage.uris import percent_encode
from tasks.classification.read import read_shard
from tests.harness.s3_server import S3Server, faulty_proxy, on_ceph
from tests.unit.tasks.classification.image_inputs import OPTIONS, plan_of, png

pytest_plugins = ["tests.harness.gateways"]


def tar_of(*numbers: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number in numbers:
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(png(number))
            archive.addfile(member, io.BytesIO(png(number)))
    return sink.getvalue()


def parquet_of(*numbers: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [png(number) for number in numbers]}), sink)
    return sink.getvalue()


def put(store: ObjectStore, key: str, data: bytes, **options: Any) -> str:
    """Write an object below a store, under a key that the store itself may refuse. Return its canonical URI."""
    bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
    s3_connection().client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data, **options)
    return f"{store.root}/{percent_encode(key)}"


def read_all(*locations: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Plan and read locations. Return the bytes of each image, and the kind of the reason of each other one."""
    images: dict[str, bytes] = {}
    reasons: dict[str, str] = {}
    for batch in read_shard(plan_of(*locations), OPTIONS):
        for row, (uri, data) in enumerate(zip(batch.images.to_pylist(), batch.encoded.to_pylist(), strict=True)):
            if row in batch.reasons:
                reasons[uri] = batch.reasons[row].partition(":")[0]
            else:
                images[uri] = data
    return images, reasons


# --- Keys ---

FOLDERS = ["a//", "a/ b /", "a+b%20/", "e\u0301/", "\u00e9/", "tab\t/", "#1?/"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_containers_under_any_key_are_read(s3_store: ObjectStore, folder: str) -> None:
    parquet = put(s3_store, f"{folder}x.parquet", parquet_of(1, 2))
    tar = put(s3_store, f"{folder}x.tar", tar_of(3))
    put(s3_store, folder, b"")

    images, reasons = read_all(f"{s3_store.root}/{percent_encode(folder)}")

    assert reasons == {}
    assert images == {f"{parquet}#row=0": png(1), f"{parquet}#row=1": png(2), f"{tar}#member=3.png": png(3)}


def test_list_under_a_key_with_two_slashes_is_read(s3_store: ObjectStore) -> None:
    tar = put(s3_store, "a//x.tar", tar_of(3))
    put(s3_store, "a//images.txt", b"x.tar\n")
    assert read_all(f"{s3_store.root}/a//images.txt") == ({f"{tar}#member=3.png": png(3)}, {})


def test_container_of_several_requests_is_read_completely(s3_store: ObjectStore) -> None:
    data = [png(number) * 300 for number in range(60)]  # PNGs with bytes after their end
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": data}), sink, row_group_size=20, compression="none", use_dictionary=False)
    assert len(sink.getvalue()) > 12 * 2**20
    uri = put(s3_store, "large.parquet", sink.getvalue())

    images, reasons = read_all(uri)

    assert reasons == {}
    assert images == {f"{uri}#row={row}": image for row, image in enumerate(data)}


# --- Archived objects ---


def test_archived_objects_are_quarantined_and_the_rest_is_read(moto_store: ObjectStore) -> None:
    image = put(moto_store, "images/a.png", png(1), StorageClass="GLACIER")
    tar = put(moto_store, "images/b.tar", tar_of(2), StorageClass="DEEP_ARCHIVE")
    parquet = put(moto_store, "images/c.parquet", parquet_of(3), StorageClass="GLACIER")
    fine = put(moto_store, "images/d.png", png(4))

    assert read_all(f"{moto_store.root}/images") == (
        {fine: png(4)},
        {image: "archived", tar: "archived", parquet: "archived"},
    )


def test_archived_list_entries_are_quarantined_and_the_rest_is_read(moto_store: ObjectStore) -> None:
    image = put(moto_store, "images/a.png", png(1), StorageClass="GLACIER")
    tar = put(moto_store, "images/b.tar", tar_of(2), StorageClass="GLACIER")
    fine = put(moto_store, "images/d.png", png(4))
    images_list = put(moto_store, "images.txt", f"{image}\n{tar}\n{fine}\n".encode())

    assert read_all(images_list) == ({fine: png(4)}, {image: "archived", tar: "archived"})


def test_container_that_is_archived_after_planning_is_quarantined(moto_store: ObjectStore) -> None:
    parquet = put(moto_store, "c.parquet", parquet_of(3, 4))
    plan = plan_of(parquet)
    put(moto_store, "c.parquet", parquet_of(3, 4), StorageClass="GLACIER")

    [batch] = read_shard(plan, OPTIONS)
    assert {reason.partition(":")[0] for reason in batch.reasons.values()} == {"archived"}
    assert len(batch.reasons) == 2


def test_restored_object_is_read(moto_store: ObjectStore) -> None:
    image = put(moto_store, "a.png", png(1), StorageClass="GLACIER")
    bucket, _, key = image.removeprefix("s3://").partition("/")
    s3_connection().client.restore_object(Bucket=bucket, Key=key, RestoreRequest={"Days": 1})
    assert read_all(image) == ({image: png(1)}, {})


# --- Other accounts and servers ---


@pytest.fixture
def public_bucket(ceph_gateway: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on Ceph that everyone may list and read, and then no credentials."""
    ceph_gateway.use(monkeypatch)
    bucket = f"public-{uuid4().hex}"
    client = s3_connection().client
    client.create_bucket(Bucket=bucket, ACL="public-read")
    client.put_object(Bucket=bucket, Key="a.png", Body=png(1), ACL="public-read")
    client.put_object(Bucket=bucket, Key="b.parquet", Body=parquet_of(2), ACL="public-read")
    client.put_object(Bucket=bucket, Key="private.png", Body=png(3))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    yield bucket
    ceph_gateway.use(monkeypatch)
    for name in ("a.png", "b.parquet", "private.png"):
        client.delete_object(Bucket=bucket, Key=name)
    client.delete_bucket(Bucket=bucket)


@on_ceph
def test_public_bucket_is_read_without_credentials(public_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_INPUT_UNSIGNED", "true")
    assert read_all(f"s3://{public_bucket}") == (
        {f"s3://{public_bucket}/a.png": png(1), f"s3://{public_bucket}/b.parquet#row=0": png(2)},
        {f"s3://{public_bucket}/private.png": "permission"},
    )


@on_ceph
def test_private_bucket_is_refused_without_credentials(
    ceph_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceph_store.create("a.png", png(1))
    monkeypatch.setenv("FMNIST_INPUT_UNSIGNED", "true")
    with pytest.raises(RequestError, match=r"FMNIST_INPUT_PROFILE"):
        list(list_input_files(ceph_store.root))


@on_ceph
def test_inputs_on_ceph_are_read_while_the_store_is_on_moto(
    ceph_store: ObjectStore,
    moto_server: S3Server,
    ceph_gateway: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    image = put(ceph_store, "a.png", png(1))
    parquet = put(ceph_store, "b//c.parquet", parquet_of(2))
    theirs = ceph_gateway.environment
    (tmp_path / "credentials").write_text(
        f"[ceph]\naws_access_key_id = {theirs['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {theirs['AWS_SECRET_ACCESS_KEY']}\n"
    )
    moto_server.use(monkeypatch)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("FMNIST_INPUT_PROFILE", "ceph")
    monkeypatch.setenv("FMNIST_INPUT_ENDPOINT_URL", ceph_gateway.endpoint)

    assert read_all(ceph_store.root) == ({image: png(1), f"{parquet}#row=0": png(2)}, {})
    store = moto_server.new_store()
    store.create("object", b"data")
    assert store.read("object") == b"data"


# --- https ---


@pytest.fixture(scope="module")
def own_authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """The certificate of an own authority, and what a server on 127.0.0.1 needs to serve https with one from it."""
    folder = tmp_path_factory.mktemp("tls")
    authority, certificate = folder / "authority.pem", folder / "certificate.pem"
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj")
    for arguments in (
        [*request, "/CN=authority", "-keyout", f"{authority}.key", "-out", str(authority)],
        [
            *(*request, "/CN=server", "-keyout", f"{certificate}.key", "-out", str(certificate)),
            *("-CA", str(authority), "-CAkey", f"{authority}.key"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"),
        ],
    ):
        subprocess.run(arguments, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    return authority, context


@pytest.fixture
def https_server(
    moto_server: S3Server, own_authority: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    with faulty_proxy(moto_server, tls=own_authority[1]) as server:
        server.use(monkeypatch)
        yield server


def test_certificate_of_an_own_authority_is_trusted_by_the_store_and_the_inputs(
    https_server: S3Server, own_authority: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(own_authority[0]))
    store = https_server.new_store()

    assert store.root.startswith("s3://")
    assert [step for step in check_store(store).steps if not step.ok] == []  # by boto3, pyarrow and delta-rs
    parquet = put(store, "images/a.parquet", parquet_of(2))
    assert read_all(f"{store.root}/images") == ({f"{parquet}#row=0": png(2)}, {})


def test_untrusted_certificate_is_reported_with_the_setting(https_server: S3Server) -> None:
    with pytest.raises(RequestError, match="AWS_CA_BUNDLE"):
        list(list_input_files(f"s3://{https_server.bucket}/x"))
    with pytest.raises(StoreMisconfigured, match="AWS_CA_BUNDLE"):
        https_server.new_store().read("x")


def test_missing_file_of_certificates_is_named(
    https_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    with pytest.raises(RequestError, match=r"AWS_CA_BUNDLE.*nowhere\.pem"):
        list(list_input_files(f"s3://{https_server.bucket}/x"))
    with pytest.raises(StoreMisconfigured, match=r"AWS_CA_BUNDLE.*nowhere\.pem"):
        https_server.new_store().read("x")
