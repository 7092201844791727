"""Every image of a tar is read exactly once under its name, also from unusual, truncated and damaged tars."""

import bz2
import gzip
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.errors import InvalidDataset
from fmnist_model.formats import tar
from fmnist_model.formats.interface import ContainerPiece, ImageBatch, member_fragment
from fmnist_model.formats.tar import pieces, read
from tests.harness.absent import needs

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
ORIGIN = "file:///data/images.tar"
Entry = tuple[str, bytes]
Image = tuple[str, bytes, int | None]


class CountedFile:
    """A random-access file in memory that counts requests and bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.requests = 0
        self.bytes_read = 0

    def size(self) -> int:
        return len(self._data)

    def read_at(self, size: int, offset: int) -> bytes:
        found = self._data[offset : offset + size]
        self.requests += 1
        self.bytes_read += len(found)
        return found


def make_tar(entries: Sequence[Entry], file_format: int = tarfile.PAX_FORMAT, mtime: float = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=file_format) as archive:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def open_file(data: bytes) -> pa.NativeFile:
    return pa.BufferReader(data)


def cut(data: bytes, rows: int = 1000, size: int = 2**30) -> list[ContainerPiece]:
    return list(pieces(open_file(data), ORIGIN, target_rows=rows, target_bytes=size))


def images_of(batches: Sequence[ImageBatch]) -> list[Image]:
    columns = [(batch.fragments.to_pylist(), batch.encoded.to_pylist(), batch.labels.to_pylist()) for batch in batches]
    return [image for batch in columns for image in zip(*batch, strict=True)]


def read_all(data: bytes, rows: int = 1000, size: int = 2**30, batch_rows: int = 100) -> list[Image]:
    """Read all pieces, and check their row numbers and counts."""
    found: list[Image] = []
    for piece in cut(data, rows, size):
        assert piece.first_row == len(found)
        batches = list(read(open_file(data), ORIGIN, piece, batch_rows=batch_rows))
        assert all(0 < len(batch.fragments) <= batch_rows for batch in batches)
        found += images_of(batches)
        assert len(found) == piece.first_row + piece.rows
    return found


def reasons_of(data: bytes, rows: int = 1000) -> dict[str, str]:
    """Reasons by fragment. The other images are not null."""
    found: dict[str, str] = {}
    for piece in cut(data, rows):
        for batch in read(open_file(data), ORIGIN, piece, batch_rows=100):
            batch.encoded.validate(full=True)
            assert set(np.flatnonzero(batch.encoded.is_null())) == batch.reasons.keys()
            found |= {batch.fragments[row].as_py(): reason for row, reason in batch.reasons.items()}
    return found


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


# Round trips

components = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=120
).filter(lambda text: text not in (".", "..") and not text.startswith("."))
image_names = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem]) + suffix,
    st.lists(components, max_size=3),
    components,
    st.sampled_from([".png", ".jpg", ".JPEG", ".left.webp", ".tiff"]),
)


@settings(deadline=None, print_blob=True, max_examples=200)
@given(
    st.lists(st.tuples(image_names, st.binary(max_size=1500)), max_size=25, unique_by=lambda entry: entry[0]),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.booleans(),
    st.tuples(st.integers(1, 30), st.integers(1, 10_000), st.integers(1, 10)),
)
def test_every_image_is_read_once_and_in_order(
    entries: list[Entry], file_format: int, gzipped: bool, sizes: tuple[int, int, int]
):
    data = make_tar(entries, file_format)
    found = read_all(gzip.compress(data, 1) if gzipped else data, *sizes)
    # Compare with the names that tarfile reads, since it drops everything after a NUL, and trailing slashes.
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(member.name.encode("utf-8", "surrogateescape"), archive.extractfile(member)) for member in archive]
    assert [name for name, _, _ in found] == [member_fragment(name) for name, _ in expected]
    assert [encoded for _, encoded, _ in found] == [data for _, data in entries]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("mtime", [0, 1_700_000_000.25])  # the fraction gives every member a PAX header
@pytest.mark.parametrize("length", [1, 80, 95, 96, 97, 100, 101, 140, 200, 240])
def test_long_names_are_read_in_every_format(file_format: int, mtime: float, length: int):
    folder = "folder/" * (length // 14)
    names = [f"{folder}{number:0{min(90, length - len(folder))}}.png" for number in range(3)]
    data = make_tar([(name, name.encode()) for name in names], file_format, mtime)
    assert read_all(data, rows=1) == [(f"#member={name}", name.encode(), None) for name in names]


@pytest.mark.parametrize("file_format", FORMATS[1:])
def test_names_longer_than_any_path_are_read(file_format: int):
    name = "folder/" * 2000 + "1.png"
    assert read_all(make_tar([(name, b"1")], file_format)) == [(f"#member={name}", b"1", None)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000])
def test_pieces_have_the_target_rows(rows: int):
    data = make_tar([(f"{number}.png", b"x") for number in range(20)])
    assert [piece.rows for piece in cut(data, rows)] == [rows] * (20 // rows) + [20 % rows] * (20 % rows > 0)


def test_pieces_end_at_the_target_bytes():
    data = make_tar([(f"{number}.png", bytes(10_000)) for number in range(20)])
    found = cut(data, size=30_000)
    assert [piece.rows for piece in found] == [3] * 6 + [2]
    assert all(30_000 <= piece.size <= 33_000 for piece in found[:-1])


def test_reading_a_piece_needs_only_its_bytes():
    data = make_tar([(f"{number}.png", bytes([number]) * 700) for number in range(20)])
    second = cut(data, rows=5)[1]
    blank = bytearray(len(data))
    # The header of the next member is needed as well, because it ends the last sample.
    start, end = second.offset, second.offset + second.size + 2048
    blank[start:end] = data[start:end]
    assert [name for name, _, _ in images_of(list(read(open_file(bytes(blank)), ORIGIN, second, batch_rows=9)))] == [
        f"#member={number}.png" for number in range(5, 10)
    ]


def test_batches_respect_the_maximum_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tar, "BATCH_BYTES", 10_000)
    data = make_tar([(f"{number}.png", bytes(3_000)) for number in range(10)])
    [piece] = cut(data)
    batches = list(read(open_file(data), ORIGIN, piece, batch_rows=1000))
    assert [len(batch.fragments) for batch in batches] == [4, 4, 2]


def test_columns_have_the_types_for_the_decoder():
    data = make_tar([("1.png", b"1")])
    [batch] = read(open_file(data), ORIGIN, cut(data)[0], batch_rows=10)
    assert [batch.fragments.type, batch.encoded.type, batch.labels.type] == [pa.string(), pa.binary(), pa.int16()]
    for column in (batch.fragments, batch.encoded, batch.labels):
        column.validate(full=True)


# Samples and labels


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize(
    ("label_member", "label"),
    [
        (("cls", b"7"), 7),
        (("cls", b" 0\n"), 0),
        (("CLS", b"9"), 9),
        (("cls", b"Ankle boot"), 9),
        (("cls", b"10"), None),
        (("cls", b"-1"), None),
        (("cls", b"1.0"), 1),
        (("cls", b"\xff"), None),
        (("cls", b""), None),
        (("txt", b"7"), 7),
        (("txt", b"a photo of a shirt"), None),
        (("json", b"7"), 7),
        (("json", b'{"LABEL": "7"}'), 7),
        (("json", b'{"label": null, "class": "ankle_boot"}'), 9),
        (("json", b'{"label": 7}'), 7),
        (("json", b'{"cls": 3, "caption": "a shoe"}'), 3),
        (("json", b'{"label": "Bag"}'), 8),
        (("json", b'{"label": true}'), None),
        (("json", b'{"label": 1e0}'), 1),
        (("json", b"[7]"), None),
        (("json", b'{"label": 7'), None),
        (("json", b"[" * 100_000), None),
        (("json", b"\xff\xfe"), None),
    ],
)
def test_image_gets_the_label_of_its_sample(image_first: bool, label_member: tuple[str, bytes], label: int | None):
    entries = [("a/1.png", b"1"), (f"a/1.{label_member[0]}", label_member[1])]
    data = make_tar([("a/0.png", b"0"), *(entries if image_first else entries[::-1]), ("b/1.png", b"2")])
    assert [found for _, _, found in read_all(data)] == [None, label, None]


def test_cls_member_takes_precedence_over_json():
    data = make_tar([("1.json", b'{"label": 3}'), ("1.png", b"1"), ("1.cls", b"4")])
    assert read_all(data) == [("#member=1.png", b"1", 4)]


def test_json_member_gives_the_label_if_cls_is_unreadable():
    data = make_tar([("1.cls", b"cat"), ("1.json", b'{"label": 3}'), ("1.png", b"1")])
    assert read_all(data) == [("#member=1.png", b"1", 3)]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_sample_is_never_cut(rows: int):
    samples = [
        [(f"{key}.left.png", b"l"), (f"{key}.cls", str(key).encode()), (f"{key}.right.png", b"r")] for key in range(8)
    ]
    data = make_tar([entry for sample in samples for entry in sample])
    found = read_all(data, rows, batch_rows=1)
    assert found == [
        image
        for key in range(8)
        for image in ((f"#member={key}.left.png", b"l", key), (f"#member={key}.right.png", b"r", key))
    ]


def test_same_name_in_another_folder_is_another_sample():
    data = make_tar([("a/1.cls", b"1"), ("a/1.png", b"a"), ("b/1.png", b"b")])
    assert [label for _, _, label in read_all(data)] == [1, None]


def test_dot_in_a_folder_name_does_not_start_the_extension():
    data = make_tar([("v1.2/1.cls", b"1"), ("v1.2/1.png", b"a"), ("v1.2/2.png", b"b")])
    assert [label for _, _, label in read_all(data)] == [1, None]


def test_endless_sample_is_cut():
    """`frame.0001.png`, … form one sample by their names, which would be held in memory until its end."""
    data = make_tar([(f"frame.{number:04}.png", b"x") for number in range(2000)])
    found = cut(data, rows=10)
    assert max(piece.rows for piece in found) <= 256
    assert read_all(data, rows=10) == read_all(data, rows=1000)


def test_other_members_are_skipped():
    data = make_tar([("readme.txt", b"x"), ("1.png", b"1"), ("1.npy", b"x"), ("png", b"x"), ("x.png.gz", b"x")])
    assert read_all(data, rows=1) == [("#member=1.png", b"1", None)]


@pytest.mark.parametrize("name", ["._1.png", "a/._1.png", ".png", "a/.hidden.png"])
def test_hidden_members_are_skipped(name: str):
    assert read_all(make_tar([(name, b"x"), ("1.png", b"1")])) == [("#member=1.png", b"1", None)]


def test_tar_without_images_has_no_pieces():
    assert cut(make_tar([("readme.txt", b"x")])) == []
    assert cut(make_tar([])) == []


# Compression


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


COMPRESSORS = {"gzip": gzip.compress, "bzip2": bz2.compress, "Zstandard": zstandard}


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
@pytest.mark.parametrize("parts", [1, 3])
def test_compressed_tar_is_read(compress: Callable[[bytes], bytes], parts: int):
    data = make_tar([(f"{number}.png", random_bytes(30_000, number)) for number in range(40)])
    cuts = [len(data) * number // parts for number in range(parts + 1)]
    compressed = b"".join(compress(data[start:end]) for start, end in itertools.pairwise(cuts))
    assert read_all(compressed, rows=7) == read_all(data)


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_truncated_compressed_tar_has_the_images_before_its_end(compress: Callable[[bytes], bytes]):
    data = make_tar([(f"{number}.png", random_bytes(30_000, number)) for number in range(100)])
    compressed = compress(data)
    found = read_all(compressed[: len(compressed) // 2])
    assert 25 <= len(found) <= 51
    assert found[:-1] == read_all(data)[: len(found) - 1]


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_damaged_compressed_tar_is_refused(kind: str):
    compressed = bytearray(COMPRESSORS[kind](make_tar([("1.png", random_bytes(300_000))])))
    compressed[11:60] = b"\xff" * 49
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} is a damaged {kind} file"):
        read_all(bytes(compressed))


# Names


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        (b"cats/0001.png", "#member=cats/0001.png"),
        (b"./a b.png", "#member=./a b.png"),
        ("Stiefel/größe 36.png".encode(), "#member=Stiefel/größe 36.png"),
        ("靴.png".encode(), "#member=靴.png"),
        (b"100%25#row=1?.png", "#member=100%2525%23row=1%3F.png"),
        (b"two\nlines\x7f.png", "#member=two%0Alines%7F.png"),
        ("next\x85line.png".encode(), "#member=next%C2%85line.png"),
        (b"gr\xf6\xdfe.png", "#member=gr\\xf6\\xdfe.png"),
        (b"\xed\xa0\x80.png", "#member=\\xed\\xa0\\x80.png"),  # an encoded surrogate
        (b"dir\\file.png", "#member=dir\\file.png"),
        (b"dir\\x41.png", "#member=dir\\x5cx41.png"),
    ],
)
def test_fragment_contains_the_escaped_name(name: bytes, fragment: str):
    assert member_fragment(name) == fragment


@settings(print_blob=True, max_examples=1000)
@given(
    st.lists(st.sampled_from([b"\\", b"%", b"#", b"x", b"4", b"f", b"a", b"\xff", b"\n", "ö".encode()])).map(b"".join)
    | st.binary()
)
def test_escaping_is_reversible(name: bytes):
    escaped = member_fragment(name).removeprefix("#member=").encode()
    assert re.sub(rb"(?:\\x|%)([0-9a-fA-F]{2})", lambda found: bytes.fromhex(found[1].decode()), escaped) == name


@pytest.mark.parametrize("file_format", FORMATS)
def test_names_that_are_not_utf8_are_read_in_every_format(file_format: int):
    name = os.fsdecode(b"gr\xf6\xdfe.png")
    assert read_all(make_tar([(name, b"1")], file_format)) == [("#member=gr\\xf6\\xdfe.png", b"1", None)]


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_images_with_the_same_name_get_distinct_fragments(rows: int, gzipped: bool):
    names = ["1.png", "2.png", "3.png", "1.png", "4.png", "1.png"]
    data = make_tar([(name, bytes([number])) for number, name in enumerate(names)])
    found = read_all(gzip.compress(data) if gzipped else data, rows)
    assert found == [(f"#member={name};row={number}", bytes([number]), None) for number, name in enumerate(names)]


# Special members and other programs


def test_links_folders_and_devices_are_skipped():
    buffer = io.BytesIO()
    kinds = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, kind in enumerate(kinds):
            other = tarfile.TarInfo(f"other-{number}.png")
            other.type, other.linkname = kind, "1.png"
            archive.addfile(other)
            image = tarfile.TarInfo(f"{number}.png")
            image.size = 600
            archive.addfile(image, io.BytesIO(bytes([number]) * 600))
    expected = [(f"#member={number}.png", bytes([number]) * 600, None) for number in range(len(kinds))]
    assert read_all(buffer.getvalue(), rows=2) == expected


@needs(shutil.which("tar") is not None, "GNU tar is not installed: sudo apt-get install --yes tar")
@pytest.mark.parametrize("options", ["--format=gnu", "--format=pax", "--format=pax --sparse-version=0.1"])
def test_sparse_files_are_skipped(tmp_path: Path, options: str):
    with (tmp_path / "sparse.png").open("wb") as file:
        for number in range(40):  # more regions than fit the first header
            file.seek(number * 100_000)
            file.write(b"data" * 200)
        file.truncate(8_000_000)
    for name in ("a.png", "z.png"):
        (tmp_path / name).write_bytes(name.encode() * 300)
    command = ["tar", "-S", *options.split(), "-cf", "made.tar", "a.png", "sparse.png", "z.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "made.tar").read_bytes()
    assert len(data) < 1_000_000
    assert read_all(data, rows=1) == [("#member=a.png", b"a.png" * 300, None), ("#member=z.png", b"z.png" * 300, None)]


@needs(shutil.which("tar") is not None, "GNU tar is not installed: sudo apt-get install --yes tar")
@pytest.mark.parametrize("file_format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_tar_by_gnu_tar_is_read(tmp_path: Path, file_format: str):
    folder = tmp_path / "cats"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.png").write_bytes(bytes([number]) * number * 40)
    subprocess.run(
        ["tar", f"--format={file_format}", "--sort=name", "-cf", "made.tar", "cats"], cwd=tmp_path, check=True
    )
    found = read_all((tmp_path / "made.tar").read_bytes(), rows=7)
    assert found == [(f"#member=cats/{number:02}.png", bytes([number]) * number * 40, None) for number in range(30)]


def test_tar_with_a_global_header_is_read():
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a commit"}
    ) as archive:
        image = tarfile.TarInfo("1.png")
        image.size = 1
        archive.addfile(image, io.BytesIO(b"1"))
    assert read_all(buffer.getvalue()) == [("#member=1.png", b"1", None)]


def test_concatenated_tars_are_read():
    data = make_tar([("1.png", b"1"), ("2.png", b"2")]) + make_tar([("3.png", b"3")])
    assert [name for name, _, _ in read_all(data, rows=1)] == [f"#member={number}.png" for number in (1, 2, 3)]


def test_gzip_file_with_several_members_is_read():
    data = make_tar([(f"{number}.png", random_bytes(3000, number)) for number in range(9)])
    found = read_all(gzip.compress(data[:5000]) + gzip.compress(data[5000:]))
    assert found == read_all(data)


def test_gzipped_tar_is_one_piece():
    data = gzip.compress(make_tar([(f"{number}.png", b"x") for number in range(50)]))
    assert cut(data, rows=3, size=10) == [ContainerPiece(0, 50, 0, len(data))]


# Truncated and damaged


@pytest.mark.parametrize("file_format", FORMATS)
def test_truncated_tar_yields_all_images_that_start_before_its_end(file_format: int):
    entries = [(f"{'folder/' * (number * 7)}{number}.png", random_bytes(700, number)) for number in range(4)]
    if file_format == tarfile.USTAR_FORMAT:
        entries = [(f"{number}.png", data) for number, (_, data) in enumerate(entries)]
    data = make_tar(entries, file_format)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        starts = [member.offset_data for member in archive]
    for length in range(512, len(data), 97):
        started = [number for number, start in enumerate(starts) if start <= length]
        expected = [(f"#member={entries[n][0]}", entries[n][1][: length - starts[n]], None) for n in started]
        assert read_all(data[:length], rows=1) == expected


def test_truncated_gzipped_tar_yields_its_complete_images():
    entries = [(f"{number}.png", random_bytes(2000, number)) for number in range(30)]
    data = gzip.compress(make_tar(entries))
    for length in range(1000, len(data) - 1, 3001):
        found = read_all(data[:length])
        assert [encoded for _, encoded, _ in found[:-1]] == [encoded for _, encoded in entries[: len(found) - 1]]
        assert entries[len(found) - 1][1].startswith(found[-1][1])
        assert len(found) >= (length - 500) // 2600


def test_member_above_eight_gibibytes_is_read():
    member = tarfile.TarInfo("huge.png")
    member.size = 9 * 2**30
    data = member.tobuf(tarfile.GNU_FORMAT) + bytes(1000)
    assert cut(data) == [ContainerPiece(0, 1, 0, 1512)]
    assert reasons_of(data) == {"#member=huge.png": "too large: 9,663,676,416 bytes"}


@pytest.mark.parametrize("gzipped", [False, True])
def test_member_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch, gzipped: bool):
    monkeypatch.setattr(tar, "MAX_IMAGE_BYTES", 100)
    data = make_tar([("0.png", b"0"), ("1.png", bytes(3000)), ("2.png", b"2")])
    data = gzip.compress(data) if gzipped else data
    assert read_all(data) == [
        ("#member=0.png", b"0", None),
        ("#member=1.png", None, None),
        ("#member=2.png", b"2", None),
    ]
    assert reasons_of(data) == {"#member=1.png": "too large: 3,000 bytes"}


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("gzipped", [False, True])
def test_damaged_header_costs_only_the_images_up_to_the_next_one(gzipped: bool, rows: int):
    data = bytearray(make_tar([(f"{number}.png", bytes([number]) * 600) for number in range(4)], tarfile.USTAR_FORMAT))
    data[1536:1542] = b"damage"
    data = gzip.compress(bytes(data)) if gzipped else bytes(data)
    names = ["#member=0.png", "#member=@1536", "#member=2.png", "#member=3.png"]
    assert [name for name, _, _ in read_all(data, rows)] == names
    [(name, reason)] = reasons_of(data, rows).items()
    assert (name, reason.startswith("damaged: "), "1,536" in reason) == ("#member=@1536", True, True)


def test_overwritten_part_of_a_tar_counts_as_one_image():
    data = bytearray(make_tar([(f"{number}.png", bytes([number]) * 600) for number in range(9)], tarfile.USTAR_FORMAT))
    data[3000:9000] = b"\xff" * 6000
    names = [name for name, _, _ in read_all(bytes(data))]
    assert names == [
        "#member=0.png",
        "#member=1.png",
        "#member=@3072",
        "#member=6.png",
        "#member=7.png",
        "#member=8.png",
    ]


def test_bytes_after_the_end_mark_count_as_one_damaged_image():
    data = make_tar([("1.png", b"1")]) + b"\xff" * 512
    assert [name for name, _, _ in read_all(data)] == ["#member=1.png", "#member=@10240"]


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("labels_first", [False, True])
def test_labels_apart_from_their_images_are_found(labels_first: bool, gzipped: bool, rows: int):
    images = [(f"x/{number}.png", b"%d" % number) for number in range(30)]
    labels = [(f"x/{number}.cls", b"%d" % (number % 10)) for number in range(30)]
    data = make_tar(labels + images if labels_first else images + labels)
    found = read_all(gzip.compress(data) if gzipped else data, rows)
    assert found == [(f"#member=x/{number}.png", b"%d" % number, number % 10) for number in range(30)]


def test_label_next_to_its_image_takes_precedence_over_one_apart():
    data = make_tar(
        [("1.png", b"1"), ("2.png", b"2"), ("2.cls", b"2"), ("1.cls", b"1"), ("2.json", b"9"), ("1.txt", b"7")]
    )
    assert [label for _, _, label in read_all(data)] == [1, 2]


def test_members_without_images_don_t_make_labels_be_apart():
    data = make_tar([("readme.txt", b"7"), ("1.png", b"1"), ("2.png", b"2"), ("2.cls", b"3")])
    assert [piece.offset % 512 for piece in cut(data)] == [0]


def test_labels_apart_need_a_pass_only_for_every_eight_pieces():
    images = [(f"{number}.png", b"x") for number in range(32)]
    data = make_tar([*images, *((f"{number}.cls", b"5") for number in range(32))])
    assert [piece.rows for piece in cut(data, rows=1)] == [8] * 4
    assert {label for _, _, label in read_all(data, rows=1)} == {5}


def test_unknown_label_of_a_sample_is_logged(caplog: pytest.LogCaptureFixture):
    data = make_tar([("1.png", b"1"), ("1.cls", b"n02084071")])
    origin = "file:///a/tar/with/unknown/labels.tar"
    for piece in pieces(open_file(data), origin, target_rows=1, target_bytes=1):
        list(read(open_file(data), origin, piece, batch_rows=1))
    assert [origin in record.getMessage() for record in caplog.records] == [True]
    assert "n02084071" in caplog.text


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x89PNG\r\n\x1a\n" * 100, "PNG image"),
        (b"PAR1" * 200, "Parquet"),
        (b"<html>" * 100, "web page"),
        (b"PK\3\4" * 200, "zip"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 20, "Git LFS"),
        (b"other" * 200, "6f 74 68 65 72 6f 74 68"),
        (b"", "empty"),
    ],
)
def test_error_about_another_format_says_what_the_file_is(data: bytes, found: str):
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*{found}"):
        cut(data)


@pytest.mark.parametrize("data", [b"", b"short", gzip.compress(b"", mtime=0), gzip.compress(b"short", mtime=0)])
def test_file_shorter_than_a_header_is_refused(data: bytes):
    with pytest.raises(InvalidDataset, match=ORIGIN):
        cut(data)


def test_damaged_gzip_file_is_refused():
    data = bytearray(gzip.compress(make_tar([("1.png", random_bytes(5000))])))
    data[-8] ^= 0xFF  # part of the checksum
    with pytest.raises(InvalidDataset, match=f"{ORIGIN} .*gzip.*CRC"):
        cut(bytes(data))


@pytest.mark.parametrize(
    "records",
    [b"x", b"99 path=a\n", b"3 \n", b"11 path=ab", b"10 path=a\n" * 2 + b"4 x\n", b"12 size=-100\n", b"0 path=a\n"],
)
def test_malformed_pax_header_costs_no_other_image(records: bytes):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    data = header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + make_tar([("1.png", b"1")])
    assert [name for name, _, _ in read_all(data)] == ["#member=@0", "#member=1.png"]


@settings(deadline=None, print_blob=True, max_examples=300)
@given(st.data())
def test_any_damage_raises_nothing_but_invalid_dataset(data: st.DataObject):
    file_format = data.draw(st.sampled_from(FORMATS))
    damaged = bytearray(make_tar([(f"{'long/' * 25}{number}.png", bytes(600)) for number in range(3)], file_format))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, 7000))] = data.draw(st.integers(0, 255))
    with suppress(InvalidDataset):
        read_all(bytes(damaged), rows=1)


def test_file_replaced_after_planning_is_refused():
    planned = make_tar([(f"{number}.png", b"x") for number in range(8)])
    now = make_tar([(f"{number}.png", b"x") for number in range(6)])
    with pytest.raises(InvalidDataset, match=rf"{ORIGIN} has 2 images from byte 4,096\b.*\b4\b"):
        list(read(open_file(now), ORIGIN, cut(planned, rows=4)[1], batch_rows=10))


# Requests to the store


def test_small_members_are_read_together():
    data = make_tar([(f"{number}.png", bytes(500)) for number in range(10_000)])
    file: Any = CountedFile(data)
    found = list(pieces(file, ORIGIN, target_rows=5_000, target_bytes=2**30))
    assert file.requests <= 2 + len(data) // (4 * 2**20) + 1
    assert file.bytes_read < 1.01 * len(data)
    file = CountedFile(data)
    assert sum(len(batch.fragments) for piece in found for batch in read(file, ORIGIN, piece, batch_rows=512)) == 10_000
    assert file.requests <= 12
    assert file.bytes_read < 1.01 * len(data)


def test_planning_skips_the_data_of_large_members():
    file: Any = CountedFile(make_tar([(f"{number}.png", bytes(2_000_000)) for number in range(10)]))
    assert len(list(pieces(file, ORIGIN, target_rows=1, target_bytes=2**30, block_bytes=2**16))) == 10
    assert file.bytes_read < 12 * 2**16


def test_local_file_is_read(tmp_path: Path):
    data = make_tar([(f"{number}.png", random_bytes(900, number)) for number in range(50)])
    (tmp_path / "images.tar").write_bytes(data)
    with pa.OSFile(str(tmp_path / "images.tar")) as file:
        found = list(pieces(file, ORIGIN, target_rows=9, target_bytes=2**30))
        batches = [read(file, ORIGIN, piece, batch_rows=4) for piece in found]
        assert images_of(list(itertools.chain(*batches))) == read_all(data)
        assert not file.closed


def test_gzipped_local_file_stays_open(tmp_path: Path):
    (tmp_path / "images.tgz").write_bytes(gzip.compress(make_tar([("1.png", b"1")])))
    with pa.OSFile(str(tmp_path / "images.tgz")) as file:
        [piece] = pieces(file, ORIGIN, target_rows=9, target_bytes=2**30)
        assert images_of(list(read(file, ORIGIN, piece, batch_rows=4))) == [("#member=1.png", b"1", None)]
        assert not file.closed


def test_labels_written_by_webdataset_are_read():
    samples = [
        (f"{number:06}.{ending}", value)
        for number in range(5)
        for ending, value in (
            ("cls", str(number).encode()),
            ("json", json.dumps({"id": number}).encode()),
            ("png", b"x"),
        )
    ]
    assert [label for _, _, label in read_all(make_tar(samples, mtime=1.5), rows=2)] == [0, 1, 2, 3, 4]
