"""A file has one canonical URI under each of its spellings, and the URI leads back to the file."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_model.formats.interface import member_fragment
from infra.errors import RequestError
from infra.storage.uris import (
    bucket_and_key,
    canonical_from_raw,
    canonical_uri,
    local_path,
    percent_decode,
    percent_encode,
    possible_uris,
)
from tests.harness.absent import missing

NAMES = [
    "%41.png",
    "#row=3.png",
    "a?.png",
    "two\nlines.png",
    "del\x7f.png",
    "ü.png",
    "two words.png",
    "back\\slash.png",
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/d/t-shirt #1.jpg", "file:///d/t-shirt %231.jpg"),
        ("/d/100%/a?b.jpg", "file:///d/100%25/a%3Fb.jpg"),
        ("/d/%41.jpg", "file:///d/%2541.jpg"),
        ("/d/two\nlines\x7f\x85.jpg", "file:///d/two%0Alines%7F%C2%85.jpg"),
        ("/d/größe 图 \\ [1]&;='\".jpg", "file:///d/größe 图 \\ [1]&;='\".jpg"),
    ],
)
def test_only_special_characters_of_a_path_are_encoded(path: str, expected: str):
    assert canonical_uri(path) == expected


@pytest.mark.parametrize(
    "location",
    [
        "/nowhere/x/a.png",
        "//nowhere/x/a.png",
        "/nowhere//x/./a.png",
        "/nowhere/y/../x/a.png",
        "/../nowhere/x/a.png",
        "file:///nowhere/x/a.png",
        "FILE:///nowhere/x/a.png",
        "file:////nowhere//x/a.png",
        "file:///nowhere/./y/../x/a.png",
        "file:///nowhere/x/%61.png",
        "file://localhost/nowhere/x/a.png",
        "file:/nowhere/x/a.png",
        "FILE:/nowhere//x/%61.png",
    ],
)
def test_each_spelling_of_a_file_gives_the_same_uri(location: str):
    assert canonical_uri(location) == "file:///nowhere/x/a.png"


def test_relative_path_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert {canonical_uri(path) for path in ("x/a.png", "./x//a.png", "y/../x/a.png")} == {f"file://{tmp_path}/x/a.png"}


def test_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/nowhere/analyst")
    assert canonical_uri("~/a.png") == "file:///nowhere/analyst/a.png"


def test_links_to_folders_are_resolved_and_a_link_to_a_file_keeps_its_name(tmp_path: Path):
    (tmp_path / "real/x").mkdir(parents=True)
    (tmp_path / "real/x/a.png").touch()
    (tmp_path / "real/b.png").symlink_to(tmp_path / "real/x/a.png")
    (tmp_path / "link").symlink_to("real")
    assert canonical_uri(f"{tmp_path}/link/x/a.png") == f"file://{tmp_path}/real/x/a.png"
    assert canonical_uri(f"{tmp_path}/link/b.png") == f"file://{tmp_path}/real/b.png"


def test_parent_of_a_linked_folder_is_the_real_one(tmp_path: Path):
    (tmp_path / "real/x").mkdir(parents=True)
    (tmp_path / "real/a.png").touch()
    (tmp_path / "link").symlink_to("real/x")
    assert canonical_uri(f"{tmp_path}/link/../a.png") == f"file://{tmp_path}/real/a.png"


def test_link_to_a_folder_whose_name_is_not_utf8_is_kept(tmp_path: Path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        folder.mkdir()
    except OSError:
        missing("this file system has only Unicode names")
    (tmp_path / "link").symlink_to(folder)
    assert canonical_uri(f"{tmp_path}/./link/a.png") == f"file://{tmp_path}/link/a.png"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///d/50%25.png", "/d/50%.png"),
        ("file:///d/50%.png", "/d/50%.png"),
        ("file:///d/50%2.png", "/d/50%2.png"),
        ("file:///d/50%zz.png", "/d/50%zz.png"),
        ("file:///d/%C3%BC %e5%9b%be.png", "/d/ü 图.png"),
        ("file:///d/a#1?.png", "/d/a#1?.png"),
        ("file:///d/%23%3f.png", "/d/#?.png"),
        ("file:///d/%FF.png", "/d/%FF.png"),
    ],
)
def test_file_uri_is_percent_decoded(location: str, path: str):
    assert local_path(canonical_uri(location)) == path


def test_file_with_the_undecoded_name_is_found(tmp_path: Path):
    (tmp_path / "a%20b.png").touch()
    location = f"file://{tmp_path}/a%20b.png"
    assert local_path(canonical_uri(location)) == f"{tmp_path}/a%20b.png"
    (tmp_path / "a b.png").touch()
    assert local_path(canonical_uri(location)) == f"{tmp_path}/a b.png"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/a b/ü.png", "s3://bucket/a b/ü.png"),
        ("S3://bucket/a.png", "s3://bucket/a.png"),
        ("s3a://bucket/a.png", "s3://bucket/a.png"),
        ("S3N://bucket/a b.png", "s3://bucket/a b.png"),
        ("s3:/bucket/a.png", "s3://bucket/a.png"),
        ("s3a:/bucket/a//b.png", "s3://bucket/a//b.png"),
        ("s3://bucket/a//b/./c/../d.png", "s3://bucket/a//b/./c/../d.png"),
        ("s3://bucket//a.png", "s3://bucket//a.png"),
        ("s3://bucket/t-shirt #1?.png", "s3://bucket/t-shirt %231%3F.png"),
        ("s3://bucket/%41.png", "s3://bucket/%2541.png"),
    ],
)
def test_key_on_s3_is_taken_as_it_is(location: str, expected: str):
    assert canonical_uri(location) == expected


def test_location_can_stand_for_two_files():
    assert possible_uris("file:///d/%41.png") == ["file:///d/A.png", "file:///d/%2541.png"]
    assert possible_uris("s3://bucket/%41.png") == ["s3://bucket/%2541.png", "s3://bucket/A.png"]
    assert possible_uris("s3a://bucket/%41.png") == ["s3://bucket/%2541.png", "s3://bucket/A.png"]
    assert possible_uris("/d/%41.png") == ["file:///d/%2541.png"]


@pytest.mark.parametrize("location", ["http://host/a%20b.png?x=1", "file://host/a.png", "gs://bucket/a.png"])
def test_location_that_can_not_be_opened_is_kept(location: str):
    assert canonical_uri(location) == location
    with pytest.raises(RequestError) as error:
        local_path(location)
    assert location in str(error.value)


def test_relative_path_that_starts_like_a_uri_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file:").mkdir()
    (tmp_path / "file:/a.png").touch()
    monkeypatch.chdir(tmp_path)
    assert canonical_uri("file:/a.png") == f"file://{tmp_path}/file:/a.png"


def test_location_that_can_not_be_opened_has_no_fragment():
    assert canonical_uri("http://host/a.tar#row=1") == "http://host/a.tar%23row=1"


def test_uri_of_the_store_is_not_decoded(tmp_path: Path):
    (tmp_path / "a%20b.png").touch()
    (tmp_path / "a b.png").touch()
    assert local_path(canonical_from_raw(f"file://{tmp_path}/a%20b.png")) == f"{tmp_path}/a%20b.png"
    assert bucket_and_key(canonical_from_raw("s3://bucket/a%20b.png")) == ("bucket", "a%20b.png")


# Back to the file


@pytest.mark.parametrize("name", NAMES)
def test_canonical_uri_leads_back_and_is_its_own(name: str):
    uri = canonical_uri(f"/nowhere/{name}")
    assert local_path(uri) == f"/nowhere/{name}"
    assert canonical_uri(uri) == uri
    assert bucket_and_key(canonical_uri(f"s3://bucket/x/{name}")) == ("bucket", f"x/{name}")


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1) | st.lists(
    st.sampled_from(["%", "4", "1", "a", "#row=", "#member=", "?", "\n", "\x7f", "\x85", "ü", " ", "\\", "."]),
    min_size=1,
).map("".join)
file_names = names.filter(lambda name: name not in (".", ".."))


@settings(deadline=None, print_blob=True, max_examples=1000)
@given(st.lists(file_names, min_size=1, max_size=4))
def test_path_survives_the_round_trip(parts: list[str]):
    path = "/".join(["", "nowhere", *parts])
    uri = canonical_uri(path)
    assert local_path(uri) == path
    assert canonical_uri(uri) == uri
    assert not any(character < " " or "\x7f" <= character < "\xa0" for character in uri)
    assert not {"#", "?"} & set(uri)


@settings(deadline=None, print_blob=True, max_examples=1000)
@given(st.lists(names | st.just(""), min_size=1, max_size=4))
def test_key_survives_the_round_trip(parts: list[str]):
    key = "/".join(parts)
    assert bucket_and_key(canonical_uri(f"s3://bucket/{key}")) == ("bucket", key)


@settings(deadline=None, print_blob=True)
@given(names)
def test_standard_library_reads_the_uri_as_we_do(name: str):
    uri = urlsplit(f"{canonical_uri(f'/nowhere/x{name}')}#row=17")
    assert (uri.scheme, uri.query, uri.fragment) == ("file", "", "row=17")
    assert unquote(uri.path) == f"/nowhere/x{name}"


# Members of containers


@settings(deadline=None, print_blob=True, max_examples=1000)
@given(names.map(lambda name: name.replace("\\x", "")))
def test_members_are_encoded_like_paths(name: str):
    assert member_fragment(name.encode()) == f"#member={percent_encode(name)}"
    assert percent_decode(percent_encode(name)) == name
