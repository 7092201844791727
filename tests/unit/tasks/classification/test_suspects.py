"""Whatever kills the reader of a suspect shard, only the guilty image is lost."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fmnist_model.images.decode import decode_images
from infra.errors import JobError
from infra.storage.input_files import InputsUnavailable
from tasks.classification import suspects
from tasks.classification.read import read_shard
from tasks.classification.suspects import read_suspect_shard
from tests.harness.deadly_images import MARK, deadly_bmp, install
from tests.unit.tasks.classification.image_inputs import (
    OPTIONS,
    encode_idx,
    picture,
    plan_of,
    png,
    save_files,
    save_parquet,
    save_tar,
)


@pytest.fixture(autouse=True)
def deadly_inputs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let marked inputs kill child processes."""
    for name, value in install(tmp_path_factory.mktemp("site")).items():
        monkeypatch.setenv(name, value)


def reasons(plan: pa.Table) -> dict[str, str]:
    """Read a suspect shard, and check that every image is there once.

    Returns:
        Reasons by file name and fragment. The reason of a good image is empty.
    """
    found = {}
    for batch in read_suspect_shard(plan, OPTIONS):
        decoded = decode_images(batch.encoded)
        rejected = dict(decoded.rejected)
        assert rejected.keys() == batch.reasons.keys()
        for row, image in enumerate(batch.images.to_pylist()):
            name = image.rpartition("/")[2]
            assert name not in found
            found[name] = batch.reasons.get(row, "")
    assert len(found) == sum(plan.column("rows").to_pylist())
    return found


def kinds(plan: pa.Table) -> dict[str, str]:
    """The kind of each reason, which is the text before the colon."""
    return {name: reason.partition(":")[0] for name, reason in reasons(plan).items()}


def test_harmless_shard_is_read_as_ever(tmp_path: Path) -> None:
    save_files(tmp_path, {"a.png": png(0), "b.png": b"text", "e.png": png(4)[:-30]})
    save_tar(tmp_path / "c.tar", [("1.png", png(1)), ("1.cls", b"7"), ("2.png", png(2))])
    save_parquet(tmp_path / "d.parquet", [png(3), None], [5, None])
    (tmp_path / "f.idx3-ubyte").write_bytes(encode_idx(np.stack([picture(5), picture(6)])))
    plan = plan_of(tmp_path)
    pixels, found = [], []
    for read in (read_shard, read_suspect_shard):
        batches = list(read(plan, OPTIONS))
        decoded = [decode_images(batch.encoded) for batch in batches]
        pixels.append(np.concatenate([images.pixels for images in decoded]))
        found.append(
            [
                (uri, label, batch.reasons.get(row, dict(images.rejected).get(row)))
                for batch, images in zip(batches, decoded, strict=True)
                for row, (uri, label) in enumerate(zip(batch.images.to_pylist(), batch.labels.to_pylist(), strict=True))
            ]
        )
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert found[0] == found[1]
    assert len(found[0]) == 9


@pytest.mark.parametrize(("how", "named"), [("SIGSEGV", "SIGSEGV"), ("exit", "exit code 3")])
def test_only_the_deadly_image_is_lost(tmp_path: Path, how: str, named: str) -> None:
    files = {f"{number}.png": png(number) for number in range(8)}
    save_files(tmp_path, files | {"3.bmp": deadly_bmp(how)})
    found = reasons(plan_of(tmp_path))
    assert {name for name, reason in found.items() if reason} == {"3.bmp"}
    assert found["3.bmp"].startswith("crashed: ")
    assert named in found["3.bmp"]


def test_each_of_several_deadly_images_is_lost(tmp_path: Path) -> None:
    deadly = dict.fromkeys(["0.bmp", "1.bmp"], deadly_bmp())
    save_files(tmp_path, {f"{number}.png": png(number) for number in range(5)} | deadly)
    found = kinds(plan_of(tmp_path))
    assert {name: kind for name, kind in found.items() if kind} == dict.fromkeys(deadly, "crashed")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_deadly_image_in_a_container_is_lost_alone(tmp_path: Path, kind: str) -> None:
    images = [png(0), png(1), deadly_bmp(), png(3)]
    if kind == "tar":
        save_tar(tmp_path / "c.tar", [(f"{row}.png", image) for row, image in enumerate(images)])
        lost = "c.tar#member=2.png"
    else:
        save_parquet(tmp_path / "c.parquet", images)
        lost = "c.parquet#row=2"
    assert {name: kind for name, kind in kinds(plan_of(tmp_path)).items() if kind} == {lost: "crashed"}


def test_row_that_kills_the_reader_of_a_parquet_file_is_lost_alone(tmp_path: Path) -> None:
    images = [png(number) for number in range(6)]
    save_parquet(tmp_path / "c.parquet", [*images[:3], png(0) + MARK, *images[3:]], group=1)
    save_files(tmp_path, {"a.png": png(0), "d.png": png(0)})
    found = kinds(plan_of(tmp_path))
    assert {name: kind for name, kind in found.items() if kind} == {"c.parquet#row=3": "crashed"}


def test_rows_of_a_page_that_kills_every_reader_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "_MAX_READING_DEATHS", 0)
    save_parquet(tmp_path / "b.parquet", [png(0) + MARK] * 4, group=4)
    save_files(tmp_path, {"a.png": png(0), "c.png": png(0)})
    found = kinds(plan_of(tmp_path))
    assert [found.pop(name) for name in ("a.png", "c.png")] == ["", ""]
    assert found == {f"b.parquet#row={row}": "crashed" for row in range(4)}


def test_rest_of_a_tar_that_kills_its_reader_is_lost(tmp_path: Path) -> None:
    members = [(f"{number}.png", png(number)) for number in range(4)]
    save_tar(tmp_path / "b.tar", [*members[:2], ("2.json", MARK), *members[2:]])
    save_files(tmp_path, {"a.png": png(0), "c.png": png(0)})
    found = kinds(plan_of(tmp_path))
    assert [found.pop(name) for name in ("a.png", "c.png")] == ["", ""]
    assert set(found.values()) <= {"", "crashed"}
    assert found["b.tar#row=3"] == "crashed"


def test_picture_that_takes_too_much_memory_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "MEMORY_BYTES", 100 * 2**20)
    buffer = BytesIO()
    Image.new("RGB", (6000, 8000)).save(buffer, "PNG", compress_level=1)
    save_files(tmp_path, {"a.png": png(0), "b.png": buffer.getvalue(), "c.png": png(1)})
    assert kinds(plan_of(tmp_path)) == {"a.png": "", "b.png": "too large", "c.png": ""}


def test_label_of_a_deadly_image_is_kept(tmp_path: Path) -> None:
    save_tar(tmp_path / "c.tar", [("1.png", deadly_bmp()), ("1.cls", b"7")])
    [batch] = read_suspect_shard(plan_of(tmp_path), OPTIONS)
    assert batch.labels.to_pylist() == [7]
    assert batch.reasons[0].startswith("crashed: ")


def test_failure_of_the_store_fails_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_files(tmp_path, {"a.png": png(0)})
    plan = plan_of(tmp_path)
    uri = pa.array(["s3://bucket/a.png"])
    plan = plan.set_column(plan.schema.get_field_index("uri"), plan.schema.field("uri"), uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(InputsUnavailable, match="s3://bucket/a"):
        list(read_suspect_shard(plan, OPTIONS))


def test_child_that_can_not_start_fails_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_files(tmp_path, {"a.png": png(0)})
    plan = plan_of(tmp_path)
    (tmp_path / "sitecustomize.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(JobError, match="SIGABRT"):
        list(read_suspect_shard(plan, OPTIONS))
