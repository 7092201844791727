"""Containers are recognized by name, and each format is read by its own module."""

import gzip
import io
import struct
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmnist_model.formats import ContainerKind, container_kind, pieces, read


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("images.parquet", "parquet"),
        ("s3://bucket/a.tar/images.PARQUET", "parquet"),
        ("file:///data/shard-000000.tar", "tar"),
        ("shard.tar.gz", "tar"),
        ("shard.tgz", "tar"),
        ("shard.tar.zst", "tar"),
        ("SHARD.TAR.BZ2", "tar"),
        ("shard.tar.xz", None),
        ("train-images-idx3-ubyte", "idx"),
        ("train-images-idx3-ubyte.gz", "idx"),
        ("train-images.idx3-ubyte", "idx"),
        ("images.idx", "idx"),
        ("images.idx.gz", "idx"),
        ("train-labels-idx1-ubyte", None),
        ("labels.idx", None),
        ("image.png", None),
        ("images.zip", None),
        ("parquet", None),
        ("folder.tar/", None),
        ("", None),
    ],
)
def test_container_format_is_recognized_by_name(name: str, kind: str | None):
    assert container_kind(name) == kind


def tar_of(values: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, value in enumerate(values):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
    return buffer.getvalue()


def parquet_of(values: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"picture": values, "target": [3] * len(values), "thumbnail": values}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "tar", "idx"])
def test_every_format_is_cut_into_pieces_and_read(kind: ContainerKind):
    values = [bytes([number]) * 784 for number in range(7)]
    label_file = pa.BufferReader(bytes([0, 0, 8, 1]) + struct.pack(">I", 7) + bytes([3] * 7))
    data = {
        "parquet": parquet_of(values),
        "tar": gzip.compress(tar_of(values)),
        "idx": bytes([0, 0, 8, 3]) + struct.pack(">3I", 7, 28, 28) + b"".join(values),
    }[kind]
    file = pa.BufferReader(data)
    found: list[tuple[str, bytes, int | None]] = []
    for piece in pieces(
        kind,
        file,
        "x",
        target_rows=3,
        target_bytes=2**20,
        image_column="picture",
        label_column="target",
        labels=label_file,
    ):
        for batch in read(
            kind, file, "x", piece, batch_rows=2, image_column="picture", label_column="target", labels=label_file
        ):
            columns = (batch.fragments, batch.encoded, batch.labels)
            found += zip(*(column.to_pylist() for column in columns), strict=True)
    fragments = [f"#member={number}.png" if kind == "tar" else f"#row={number}" for number in range(7)]
    label = None if kind == "tar" else 3
    assert found == [(fragment, value, label) for fragment, value in zip(fragments, values, strict=True)]


@pytest.mark.parametrize("target", [{"target_rows": 0, "target_bytes": 1}, {"target_rows": 1, "target_bytes": 0}])
def test_target_of_zero_is_refused(target: dict[str, int]):
    with pytest.raises(ValueError, match=r"target_rows=\d and target_bytes=\d"):
        list(pieces("tar", pa.BufferReader(tar_of([])), "x", **target))
