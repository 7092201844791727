"""A path, folder, glob or URI always lists the same files, or is refused by name."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

from infra.errors import RequestError
from infra.packages import ROOT
from infra.storage.input_files import InputNotFound, InputsUnavailable, list_input_files, open_input, stat_input
from infra.storage.uris import local_path
from tests.harness.absent import missing
from tests.unit.tasks.classification.image_inputs import as_nobody

ODD_NAMES = [
    "two words.png",
    "größe.png",
    "图像.png",
    "a#1.png",
    "50%.png",
    "50%20.png",
    "why?.png",
    "[1].png",
    "a&b='\".png",
    "%41.png",
    "a#row=3.png",
    "two\nlines.png",
    "del\x7f.png",
    "back\\slash.png",
]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def listed(location: str | Path, below: Path) -> list[str]:
    """List names below a folder, sorted."""
    return sorted(local_path(file.uri).removeprefix(f"{below}/") for file in list_input_files(str(location)))


def passed_over(location: str | Path, below: Path) -> list[tuple[str, str]]:
    """List the kind and name of what is passed over below a folder, sorted."""
    found: list[tuple[str, str]] = []
    list(list_input_files(str(location), lambda kind, path: found.append((kind, path.removeprefix(f"{below}/")))))
    return sorted(found)


# Listing


def test_one_file_is_listed(tmp_path: Path):
    touch(tmp_path, "a.png", "b.png")
    assert listed(tmp_path / "a.png", tmp_path) == ["a.png"]


def test_folder_is_listed_with_its_subfolders(tmp_path: Path):
    touch(tmp_path, "a.png", "x/b.png", "x/y/z/c.png")
    assert listed(tmp_path, tmp_path) == ["a.png", "x/b.png", "x/y/z/c.png"]


def test_link_to_a_parent_folder_is_followed_once(tmp_path: Path):
    touch(tmp_path, "a.png", "x/b.png")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    (tmp_path / "x" / "self").symlink_to(tmp_path / "x")
    assert listed(tmp_path, tmp_path) == ["a.png", "x/b.png"]
    assert [kind for kind, _ in passed_over(tmp_path, tmp_path)] == ["looping link"] * 2


def test_linked_folder_and_file_are_listed(tmp_path: Path):
    touch(tmp_path, "elsewhere/a.png", "here/b.png")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "here" / "broken.png").symlink_to(tmp_path / "nowhere")
    assert listed(tmp_path / "here", tmp_path) == ["elsewhere/a.png", "here/b.png", "here/c.png"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path):
    touch(tmp_path, "a.png", ".b.png", "._c.JPG", ".git/d.png", ".git/e.png", "x/.y/f.png", "g_.png")
    assert listed(tmp_path, tmp_path) == ["a.png", "g_.png"]
    assert passed_over(tmp_path, tmp_path) == [
        ("hidden file", "._c.JPG"),
        ("hidden file", ".b.png"),
        ("hidden folder", ".git"),
        ("hidden folder", "x/.y"),
    ]


def test_names_that_cameras_make_are_listed(tmp_path: Path):
    names = ["DSC_0001.JPG", "_DSC0002.JPG", "_MG_0003.JPG", "_selected/_DSC0004.JPG"]
    touch(tmp_path, *names)
    assert listed(tmp_path, tmp_path) == names
    assert passed_over(tmp_path, tmp_path) == []


@pytest.mark.parametrize("name", ["_temporary", "_delta_log", "_spark_metadata", "__MACOSX", "_Temporary"])
def test_metadata_folder_is_passed_over(tmp_path: Path, name: str):
    touch(tmp_path, "a.png", f"x/{name}/0/b.png")
    assert listed(tmp_path, tmp_path) == ["a.png"]
    assert passed_over(tmp_path, tmp_path) == [("metadata folder", f"x/{name}")]


def test_hidden_folder_that_is_a_link_is_passed_over(tmp_path: Path):
    touch(tmp_path, "images/a.png", "elsewhere/b.png")
    (tmp_path / "images/.b").symlink_to(tmp_path / "elsewhere")
    assert listed(tmp_path / "images", tmp_path) == ["images/a.png"]
    assert passed_over(tmp_path / "images", tmp_path) == [("hidden folder", "images/.b")]


def test_hidden_file_is_listed_by_its_name(tmp_path: Path):
    touch(tmp_path, ".a.png")
    assert listed(tmp_path / ".a.png", tmp_path) == [".a.png"]


def test_folder_inside_a_hidden_one_is_listed_by_its_name(tmp_path: Path):
    touch(tmp_path, ".cache/images/a.png")
    assert listed(tmp_path / ".cache/images", tmp_path) == [".cache/images/a.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_file_of_any_name_is_listed(tmp_path: Path, name: str):
    touch(tmp_path, name)
    assert listed(tmp_path / name, tmp_path) == [name]


def test_folder_with_files_of_any_name_is_listed(tmp_path: Path):
    touch(tmp_path, *ODD_NAMES)
    assert listed(tmp_path, tmp_path) == sorted(ODD_NAMES)


@pytest.mark.parametrize("name", [name.removesuffix(".png") for name in ODD_NAMES])
def test_folder_of_any_name_is_listed(tmp_path: Path, name: str):
    touch(tmp_path, f"{name}/a.png")
    assert listed(tmp_path / name, tmp_path) == [f"{name}/a.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_listed_uri_leads_back_to_the_file(tmp_path: Path, name: str):
    touch(tmp_path, name)
    (file,) = list_input_files(str(tmp_path))
    with open_input(file.uri) as stream:
        assert stream.read() == name.encode()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_listed_uri_lists_the_same_file_again(tmp_path: Path, name: str):
    touch(tmp_path, name)
    (file,) = list_input_files(str(tmp_path))
    assert list(list_input_files(file.uri)) == [file]
    assert stat_input(file.uri) == file


def test_files_with_upper_case_suffixes_are_listed(tmp_path: Path):
    touch(tmp_path, "A.PNG", "b.Jpeg")
    assert listed(tmp_path, tmp_path) == ["A.PNG", "b.Jpeg"]


def test_empty_folder_lists_nothing(tmp_path: Path):
    assert listed(tmp_path, tmp_path) == []


def test_empty_subfolder_is_not_listed(tmp_path: Path):
    (tmp_path / "a.png").mkdir()
    assert listed(tmp_path, tmp_path) == []


def test_linked_file_is_listed(tmp_path: Path):
    touch(tmp_path, "real/a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/b.png").symlink_to(tmp_path / "real/a.png")
    assert listed(tmp_path / "images", tmp_path) == ["images/b.png"]


def test_broken_link_is_passed_over(tmp_path: Path):
    touch(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    assert listed(tmp_path, tmp_path) == ["a.png"]
    assert passed_over(tmp_path, tmp_path) == [("broken link", "b.png")]


def test_link_to_itself_is_passed_over(tmp_path: Path):
    touch(tmp_path, "a.png")
    (tmp_path / "myself").symlink_to("myself")
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    assert listed(tmp_path, tmp_path) == ["a.png"]
    assert passed_over(tmp_path, tmp_path) == [("looping link", name) for name in ("myself", "one.png", "two.png")]


@pytest.mark.parametrize("name", ["b.png", "c"])
def test_pipe_and_socket_are_passed_over(tmp_path: Path, name: str):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listening, chdir(tmp_path):
        listening.bind("socket.png")
        assert listed(tmp_path, tmp_path) == ["a.png"]
        expected = [("special file", found) for found in sorted([name, "link.png", "socket.png"])]
        assert passed_over(tmp_path, tmp_path) == expected


@pytest.mark.parametrize("name", [b"r\xe9sum\xe9.doc", b"\xff.png"])
def test_name_that_is_not_utf8_is_passed_over(tmp_path: Path, name: bytes):
    touch(tmp_path, "a.png")
    make_undecodable(tmp_path, name)
    assert listed(tmp_path, tmp_path) == ["a.png"]
    assert passed_over(tmp_path, tmp_path) == [("name not in UTF-8", os.fsdecode(name))]


def test_folder_whose_name_is_not_utf8_is_passed_over(tmp_path: Path):
    touch(tmp_path, "a.png")
    folder = make_undecodable(tmp_path, b"\xff", is_folder=True)
    touch(folder, "b.png", "c/d.png")
    assert listed(tmp_path, tmp_path) == ["a.png"]
    assert passed_over(tmp_path, tmp_path) == [("name not in UTF-8", os.fsdecode(b"\xff"))]


def test_link_to_a_folder_whose_name_is_not_utf8_is_followed(tmp_path: Path):
    touch(tmp_path, "images/a.png")
    folder = make_undecodable(tmp_path, b"\xff", is_folder=True)
    touch(folder, "b.png")
    (tmp_path / "images/link").symlink_to(folder)
    assert listed(tmp_path / "images", tmp_path) == ["images/a.png", "images/link/b.png"]


def make_undecodable(folder: Path, name: bytes, *, is_folder: bool = False) -> Path:
    path = folder / os.fsdecode(name)
    try:
        path.mkdir() if is_folder else path.touch()
    except OSError:
        missing("this file system has only Unicode names")
    return path


# Folders that the user may not read


def test_unreadable_folder_does_not_stop_the_others(open_folder: Path):
    touch(open_folder, "a.png", "x/b.png", "lost+found/c.png", "closed/d.png")
    for closed in ("lost+found", "closed"):
        (open_folder / closed).chmod(0)
    with as_nobody():
        assert listed(open_folder, open_folder) == ["a.png", "x/b.png"]
        expected = [("unreadable folder", "closed"), ("unreadable folder", "lost+found")]
        assert passed_over(open_folder, open_folder) == expected


def test_folder_that_may_be_listed_but_not_entered_is_counted_by_its_files(open_folder: Path):
    touch(open_folder, "a.png", "x/b.png", "x/c.png")
    (open_folder / "x").chmod(0o444)
    with as_nobody():
        assert listed(open_folder, open_folder) == ["a.png"]
        expected = [("unreadable file", "x/b.png"), ("unreadable file", "x/c.png")]
        assert passed_over(open_folder, open_folder) == expected


def test_folder_that_may_be_entered_but_not_listed_is_passed_over(open_folder: Path):
    touch(open_folder, "a.png", "x/b.png")
    (open_folder / "x").chmod(0o111)
    with as_nobody():
        assert listed(open_folder, open_folder) == ["a.png"]
        assert passed_over(open_folder, open_folder) == [("unreadable folder", "x")]
        assert listed(open_folder / "x/b.png", open_folder) == ["x/b.png"]


def test_link_into_an_unreadable_folder_is_passed_over(open_folder: Path):
    touch(open_folder, "images/a.png", "closed/b.png")
    (open_folder / "images/b.png").symlink_to(open_folder / "closed/b.png")
    (open_folder / "closed").chmod(0)
    with as_nobody():
        assert listed(open_folder / "images", open_folder) == ["images/a.png"]
        assert passed_over(open_folder / "images", open_folder) == [("unreadable file", "images/b.png")]


def test_unreadable_file_is_listed(open_folder: Path):
    touch(open_folder, "a.png")
    (open_folder / "a.png").chmod(0)
    with as_nobody():
        assert listed(open_folder, open_folder) == ["a.png"]


def test_unreadable_folder_that_the_user_names_is_refused(open_folder: Path):
    touch(open_folder, "closed/a.png")
    (open_folder / "closed").chmod(0)
    with as_nobody(), pytest.raises(RequestError, match="closed"):
        listed(open_folder / "closed", open_folder)


def test_other_user_lists_what_it_may_read(open_folder: Path):
    touch(open_folder, "a.png", "lost+found/b.png")
    (open_folder / "lost+found").chmod(0)
    program = (
        "import sys; from infra.storage.input_files import list_input_files\n"
        "for file in list_input_files(sys.argv[1], print): print(file.uri)"
    )
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    python = [*nobody, sys.executable, "-c"]
    if subprocess.run([*python, "import infra"], cwd=ROOT, capture_output=True, check=False).returncode:
        missing("other users may not read this checkout or its Python")
    result = subprocess.run([*python, program, str(open_folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(result.stdout.splitlines()) == [
        f"file://{open_folder}/a.png",
        f"unreadable folder {open_folder}/lost+found",
    ]


# Large and changing folders


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that may become too deep for `shutil.rmtree`, which pytest removes folders with."""
    folder = tmp_path / "deep"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def nest(folder: Path, name: str, depth: int) -> None:
    """Make folders within folders, and a file in the deepest."""
    with chdir(folder):
        for _ in range(depth):
            os.mkdir(name)  # noqa: PTH102
            os.chdir(name)
        Path("deepest.png").touch()


def test_folder_deeper_than_the_recursion_limit_is_listed(deep_folder: Path):
    nest(deep_folder, "d", 1500)
    assert listed(deep_folder, deep_folder) == ["d/" * 1500 + "deepest.png"]


def test_folder_whose_path_is_too_long_is_passed_over(deep_folder: Path):
    touch(deep_folder, "a.png")
    nest(deep_folder, "d" * 200, 30)
    assert listed(deep_folder, deep_folder) == ["a.png"]
    [(kind, _)] = passed_over(deep_folder, deep_folder)
    assert kind == "unreadable folder"


def test_listing_keeps_one_folder_open_however_deep_it_is(tmp_path: Path):
    touch(tmp_path, "/".join("d" * 50) + "/a.png")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in list_input_files(str(tmp_path)):
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208


def test_first_file_is_listed_before_the_rest_of_the_folder_is_read(tmp_path: Path):
    touch(tmp_path, *(f"{number}.png" for number in range(3000)))
    listing = list_input_files(str(tmp_path))
    next(listing)
    for path in tmp_path.iterdir():
        path.unlink()
    assert len(list(listing)) < 2999


def test_folder_that_is_deleted_while_it_is_listed_is_left_out(tmp_path: Path):
    touch(tmp_path, "a.png", "x/b.png", "x/y/c.png")
    listing = list_input_files(str(tmp_path), lambda *_: pytest.fail("nothing is passed over"))
    assert next(listing).uri == f"file://{tmp_path}/a.png"
    shutil.rmtree(tmp_path / "x")
    assert list(listing) == []


def test_machine_failure_is_not_counted_as_an_unreadable_folder(tmp_path: Path):
    touch(tmp_path, "a.png", "x/b.png")
    listing = list_input_files(str(tmp_path))
    next(listing)
    with no_more_open_files(), pytest.raises(InputsUnavailable, match="Too many open files"):
        list(listing)


@contextmanager
def no_more_open_files() -> Iterator[None]:
    """Have the system refuse to open files, as it does when a process has too many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Globs


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["_g.png", "a.png", "b.png"]),
        ("?.png", ["a.png", "b.png"]),
        ("[ac].png", ["a.png"]),
        ("[!a].png", ["b.png"]),
        ("*", ["_g.png", "a.png", "b.png", "c.jpg"]),
        ("*/*.png", ["x/d.png"]),
        ("**/*.png", ["_g.png", "a.png", "b.png", "x/d.png", "x/y/e.png"]),
        ("x/**", ["x/d.png", "x/y/e.png"]),
        ("**/y/*", ["x/y/e.png"]),
        ("x*/d.*", ["x/d.png"]),
    ],
)
def test_glob_lists_its_matches(tmp_path: Path, pattern: str, expected: list[str]):
    touch(tmp_path, "a.png", "b.png", "c.jpg", "x/d.png", "x/y/e.png", ".hidden/f.png", "_g.png")
    assert listed(tmp_path / pattern, tmp_path) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", [("hidden file", ".b.png"), ("broken link", "broken.png")]),
        ("*.jpg", []),
        ("*/*.png", [("hidden folder", ".hidden")]),
        ("x/*/*", [("hidden folder", "x/.h")]),
        ("y/**", []),
        ("**/*.jpg", [("hidden folder", ".hidden"), ("hidden folder", "x/.h")]),
    ],
)
def test_glob_passes_over_only_what_it_could_match(tmp_path: Path, pattern: str, expected: list[tuple[str, str]]):
    touch(tmp_path, "a.png", ".b.png", ".hidden/f.png", "x/.h/g.png", "x/c.png", "y/d.png", ".z.docx")
    (tmp_path / "broken.png").symlink_to("nowhere")
    assert passed_over(tmp_path / pattern, tmp_path) == sorted(expected)


def test_glob_does_not_open_folders_that_it_cannot_reach(open_folder: Path):
    touch(open_folder, "a.png", "closed/b.png", "x/c.png")
    (open_folder / "closed").chmod(0)
    with as_nobody():
        assert passed_over(open_folder / "*.png", open_folder) == []
        assert passed_over(open_folder / "x*/*.png", open_folder) == []
        assert passed_over(open_folder / "*/*.png", open_folder) == [("unreadable folder", "closed")]


def test_relative_glob_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "x/a.png")
    monkeypatch.chdir(tmp_path)
    assert listed("x/*.png", tmp_path) == ["x/a.png"]


def test_glob_matches_names_with_spaces_and_special_characters(tmp_path: Path):
    touch(tmp_path, "two words #1 50%.png")
    assert listed(tmp_path / "two words*.png", tmp_path) == ["two words #1 50%.png"]


def test_regular_expression_characters_in_a_glob_are_literal(tmp_path: Path):
    touch(tmp_path, "a+(1).png", "aa1.png", "axpng")
    assert listed(tmp_path / "a+(1)*.png", tmp_path) == ["a+(1).png"]


def test_file_whose_name_is_a_glob_is_listed_itself(tmp_path: Path):
    touch(tmp_path, "[1].png", "1.png")
    assert listed(tmp_path / "[1].png", tmp_path) == ["[1].png"]


def test_glob_without_matches_lists_nothing(tmp_path: Path):
    touch(tmp_path, "a.png")
    assert listed(tmp_path / "*.jpg", tmp_path) == []


def test_glob_below_a_missing_folder_is_not_found(tmp_path: Path):
    with pytest.raises(InputNotFound, match=r"nowhere/\*\.png"):
        list(list_input_files(str(tmp_path / "nowhere/*.png")))


def test_glob_below_a_file_does_not_list_the_file(tmp_path: Path):
    touch(tmp_path, "a.png")
    with pytest.raises(InputNotFound):
        list(list_input_files(str(tmp_path / "a.png/*.png")))


def test_malformed_glob_is_refused_by_name(tmp_path: Path):
    with pytest.raises(RequestError, match=re.escape(f"{tmp_path}/a**b")):
        list(list_input_files(f"{tmp_path}/a**b"))


def test_glob_goes_through_linked_folders(tmp_path: Path):
    touch(tmp_path, "real/x/a.png", "real/b.png", "here/c.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "here/inside").symlink_to(tmp_path / "real/x")
    assert listed(tmp_path / "link/*/*.png", tmp_path) == ["real/x/a.png"]
    assert listed(tmp_path / "here/inside/?.png", tmp_path) == ["real/x/a.png"]
    assert listed(tmp_path / "here/in*/a.*", tmp_path) == ["real/x/a.png"]
    assert listed(tmp_path / "here/**", tmp_path) == ["here/c.png", "real/x/a.png"]


@pytest.mark.parametrize("folder", ["[1]", "a*", "why?"])
def test_glob_works_below_a_link_to_a_folder_named_like_a_glob(tmp_path: Path, folder: str):
    touch(tmp_path, f"{folder}/a.png", "1/b.png")
    (tmp_path / "link").symlink_to(tmp_path / folder)
    assert listed(tmp_path / "link/*.png", tmp_path) == [f"{folder}/a.png"]


def test_glob_works_in_a_working_folder_named_like_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "[1]/a.png", "1/b.png")
    monkeypatch.chdir(tmp_path / "[1]")
    assert listed("*.png", tmp_path) == ["[1]/a.png"]


def test_glob_in_a_file_uri_is_decoded(tmp_path: Path):
    touch(tmp_path, "a b/c d.png", "a b/c%20e.png")
    assert listed(f"file://{tmp_path}/a%20b/c%20*.png", tmp_path) == ["a b/c d.png"]


def test_glob_in_a_file_uri_also_matches_undecoded_names(tmp_path: Path):
    touch(tmp_path, "a%20b/c%20d.png")
    assert listed(f"file://{tmp_path}/a%20b/c%20*.png", tmp_path) == ["a%20b/c%20d.png"]


def test_encoded_glob_sign_is_no_glob(tmp_path: Path):
    touch(tmp_path, "why!.png")
    with pytest.raises(InputNotFound):
        list(list_input_files(f"file://{tmp_path}/why%3F.png"))


# Refusals


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputNotFound, match=re.escape(f"{tmp_path}/a.png")):
        list(list_input_files(str(tmp_path / "a.png")))


def test_empty_location_is_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFound):
        list(list_input_files(""))


@pytest.mark.parametrize("uri", ["http://host/a.png", "gs://bucket/a.png", "nonsense://a"])
def test_unknown_scheme_is_refused_by_name(uri: str):
    with pytest.raises(RequestError, match=re.escape(uri)):
        list(list_input_files(uri))


@pytest.mark.parametrize("uri", ["file://host/a.png", "file://a.png"])
def test_file_uri_with_a_host_is_refused(uri: str):
    with pytest.raises(RequestError, match="file:///"):
        list(list_input_files(uri))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_impossible_file_name_is_refused(tmp_path: Path, name: str):
    with pytest.raises(RequestError):
        list(list_input_files(f"{tmp_path}/{name}"))


def test_file_that_is_named_in_other_bytes_than_utf8_is_refused(tmp_path: Path):
    path = make_undecodable(tmp_path, b"\xff.png")
    with pytest.raises(RequestError, match=r"\\xff\.png"):
        list(list_input_files(str(path)))


# URIs


def test_tilde_before_an_unknown_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "~nobody-of-that-name.png")
    monkeypatch.chdir(tmp_path)
    assert listed("~nobody-of-that-name.png", tmp_path) == ["~nobody-of-that-name.png"]


def test_folder_uri_with_a_trailing_slash_is_listed(tmp_path: Path):
    touch(tmp_path, "x/a.png")
    assert listed(f"file://{tmp_path}/x/", tmp_path) == ["x/a.png"]


@pytest.mark.parametrize("location", ["{}/real", "{}/link", "{}/link/", "{}/outer/middle", "file://{}//link/./"])
def test_files_of_a_folder_have_the_same_uris_under_each_name(tmp_path: Path, location: str):
    touch(tmp_path, "real/x/a.png", "real/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer/middle").symlink_to("../link")
    assert list(list_input_files(location.format(tmp_path))) == list(list_input_files(f"{tmp_path}/real"))


def test_file_below_a_linked_folder_in_a_listed_folder_is_listed_with_its_real_folder(tmp_path: Path):
    touch(tmp_path, "here/real/x/a.png")
    (tmp_path / "here/link").symlink_to(tmp_path / "here/real")
    assert set(listed(tmp_path / "here", tmp_path)) == {"here/real/x/a.png"}


def test_error_shows_the_location_as_it_was_typed(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path)
    for location in (f"file://{tmp_path}/link/./no%20where.png", f"{tmp_path}/link/../#1.jpg"):
        with pytest.raises(InputNotFound, match=re.escape(location)):
            list(list_input_files(location))


# Fingerprints


def test_size_is_in_bytes(tmp_path: Path):
    touch(tmp_path, "a.png")
    (file,) = list_input_files(str(tmp_path))
    assert file.size == len("a.png")


def test_fingerprint_of_an_unchanged_file_stays_the_same(tmp_path: Path):
    touch(tmp_path, "a.png")
    assert list(list_input_files(str(tmp_path))) == list(list_input_files(str(tmp_path)))


@pytest.mark.parametrize("change", ["size", "time"])
def test_fingerprint_changes_with_the_file(tmp_path: Path, change: str):
    touch(tmp_path, "a.png")
    path = tmp_path / "a.png"
    os.utime(path, ns=(10**18, 10**18))
    (before,) = list_input_files(str(path))
    if change == "size":
        path.write_bytes(b"longer than before")
    os.utime(path, ns=(10**18, 10**18 + (change == "time")))
    (after,) = list_input_files(str(path))
    assert after.fingerprint != before.fingerprint
