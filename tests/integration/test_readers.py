"""Everything that reads a prediction table counts the newest row of each image once, and the documented code works."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from flows.cli.main import main
from fmnist_model.classes import CLASS_NAMES
from fmnist_model.images.decode import encode_png
from fmnist_model.network import NeuralNetwork, save_weights
from fmnist_model.predictions import prediction_schema, quarantine_schema
from infra.provenance import Provenance
from infra.storage.checkpoints import write_checkpoint
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.model_registry import ModelRegistry, ModelVersion
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.books import BatchBooks, read_books, write_books
from infra.storage.tables.delta import ensure_delta, open_delta
from infra.storage.tables.newest import TableSources, newest_query
from infra.storage.tables.parts import PartFile, statistics_of
from infra.storage.tables.planning.plan import BatchPlan
from tasks.classification.actor import ShardClassifier, ShardTask
from tasks.classification.classify import ClassifiedBatch
from tasks.classification.commit import commit_classified
from tasks.classification.options import ReadOptions
from tasks.classification.plan import plan_inputs
from tasks.classification.summarize import count_newest
from tests.harness.s3_server import S3Server

pytest_plugins = ["tests.harness.gateways"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "predictions.md").read_text()
TABLE = "mine"
MIGRATED = "00c0ffee00c0ffee"
"""Id of a batch from before Delta Lake."""


@dataclass
class Pipeline:
    """Plans, classifies and commits in this process, with the code that runs use."""

    store: ObjectStore
    model: ModelVersion
    images: Path
    scratch: Path

    def plan(self) -> list[BatchPlan]:
        """Plan what is new in the folder of images."""
        folder = self.scratch / uuid4().hex
        folder.mkdir(parents=True)
        work = plan_inputs(
            self.store, [str(self.images)], table=TABLE, model=self.model, options=ReadOptions(), scratch=folder
        )
        return work.plans

    def classify(self) -> list[BatchBooks]:
        """Classify what is new in the folder of images."""
        return [self._commit(plan) for plan in self.plan()]

    def _commit(self, plan: BatchPlan) -> BatchBooks:
        actor = ShardClassifier(self.store.root, plan, self.model)
        records = {shard: actor.work(ShardTask(shard)) for shard in range(plan.shards)}
        return commit_classified(self.store, self.model, ClassifiedBatch(plan, records, 1.0))

    def save(self, name: str, *numbers: int) -> None:
        """Write a PNG, or a Parquet file with an image for each number."""
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"image": [picture(number) for number in numbers]}), path)
        else:
            path.write_bytes(picture(numbers[0]))

    def names(self, images: list[str]) -> list[str]:
        """Shorten the URIs of images."""
        return sorted(image.removeprefix(f"file://{self.images}/") for image in images)


def picture(number: int) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8))


def new_pipeline(store: ObjectStore, folder: Path) -> Pipeline:
    files = {"model.safetensors": save_weights(NeuralNetwork())}
    written = write_checkpoint(
        store, run_id="run", epoch=1, files=files, metrics={}, parameters={}, data_version="tests"
    )
    sha256 = written.files[0].sha256
    model = ModelRegistry(store).register(
        run_id="run", epoch=1, weights_sha256=sha256, metrics={}, parameters={}, data_version="tests"
    )
    return Pipeline(store, model, folder / "images", folder / "scratch")


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline whose store is the default one of the current folder, as in the documentation."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FMNIST_")]:
        monkeypatch.delenv(name)
    return new_pipeline(open_store((tmp_path / "var" / "store").as_uri()), tmp_path)


@dataclass
class Command:
    """Runs `fmnist` in this process."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main(list(arguments))
        printed = self.capsys.readouterr()
        assert exit_info.value.code == 0, printed.err
        return printed.out

    def failed(self, code: int, *arguments: str) -> str:
        """Return the only line that a command prints when it fails with an exit code."""
        with pytest.raises(SystemExit) as exit_info:
            main(list(arguments))
        [line] = self.capsys.readouterr().err.splitlines()
        assert exit_info.value.code == code, line
        return line

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json").splitlines()[-1])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def run_sql(script: str) -> pa.Table:
    """Run a script in DuckDB without the Delta extension: a pyarrow dataset takes the place of each `delta_scan`."""
    with duckdb.connect() as connection:

        def register(found: re.Match[str]) -> str:
            name = f"scan_{uuid4().hex}"
            connection.register(name, DeltaTable(found[1].removeprefix("./")).to_pyarrow_dataset())
            return name

        return connection.sql(re.sub(r"delta_scan\('([^']*)'\)", register, script)).to_arrow_table()


def check_counts(pipeline: Pipeline, command: Command, *, predicted: list[str], quarantined: list[str]) -> None:
    """Check that `show`, the documented query and the export each have every image once."""
    shown = command.json("predictions", "show", TABLE)["models"]["1"]
    assert (shown["images"], shown["quarantined"]) == (len(predicted), len(quarantined))
    assert sum(reason["images"] for reason in shown["reasons"]) == len(quarantined)
    sql = command("predictions", "show", TABLE, "--sql")
    found = run_sql("\n".join(line for line in sql.splitlines() if not line.startswith("--")))
    assert pipeline.names(found.column("image").to_pylist()) == predicted
    command("predictions", "export", TABLE, "--to", "out.parquet")
    assert pipeline.names(pq.read_table("out.parquet").column("image").to_pylist()) == predicted


def test_file_that_shrank_leaves_no_ghost_rows(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.parquet", 1, 2, 3)
    pipeline.save("b.png", 4)
    pipeline.classify()
    pipeline.save("a.parquet", 1, 2)
    pipeline.classify()
    check_counts(pipeline, command, predicted=["a.parquet#row=0", "a.parquet#row=1", "b.png"], quarantined=[])


def test_touched_file_counts_once(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    pipeline.save("b.png", 2)
    pipeline.classify()
    os.utime(pipeline.images / "a.png", (1, 1))
    pipeline.classify()
    check_counts(pipeline, command, predicted=["a.png", "b.png"], quarantined=[])


def test_changed_file_counts_with_its_newest_prediction(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    pipeline.classify()
    (pipeline.images / "a.png").write_bytes(encode_png(np.zeros((28, 28), np.uint8)))
    second = pipeline.classify()[-1]
    check_counts(pipeline, command, predicted=["a.png"], quarantined=[])
    shown = command.json("predictions", "show", TABLE)["models"]["1"]
    counts = second.summary.class_counts
    assert list(shown["classes"]) == [CLASS_NAMES[counts.index(1)]]
    assert pq.read_table("out.parquet").column("batch").to_pylist() == [second.batch]


def test_file_that_became_unreadable_counts_as_quarantined_only(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.parquet", 1, 2)
    pipeline.save("b.png", 3)
    pipeline.classify()
    (pipeline.images / "a.parquet").write_bytes(b"not a Parquet file")
    (pipeline.images / "b.png").write_bytes(b"not an image")
    pipeline.classify()
    check_counts(pipeline, command, predicted=[], quarantined=["a.parquet", "b.png"])


def test_file_that_was_repaired_counts_as_predicted_only(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    (pipeline.images / "b.png").write_bytes(b"not an image")
    pipeline.classify()
    pipeline.save("b.png", 2)
    pipeline.classify()
    check_counts(pipeline, command, predicted=["a.png", "b.png"], quarantined=[])


def test_quarantine_of_an_uncommitted_batch_does_not_count(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    pipeline.classify()
    (pipeline.images / "a.png").write_bytes(b"not an image")
    [plan] = pipeline.plan()
    record = ShardClassifier(pipeline.store.root, plan, pipeline.model).work(ShardTask(0))
    snapshot = open_delta(pipeline.store, quarantine_folder(TABLE))
    assert snapshot is not None
    snapshot.add({plan.batch: record.quarantine})
    command("predictions", "export", TABLE, "--to", "out.parquet")
    assert pipeline.names(pq.read_table("out.parquet").column("image").to_pylist()) == ["a.png"]
    shown = command.json("predictions", "show", TABLE)["models"]["1"]
    assert (shown["images"], shown["quarantined"]) == (1, 0)


def test_compacted_and_deleted_rows_are_counted_right(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.parquet", 1, 2, 3)
    pipeline.save("b.png", 4)
    pipeline.classify()
    pipeline.save("a.parquet", 1, 2)
    pipeline.classify()
    pipeline.save("c.png", 5)
    pipeline.classify()
    command("predictions", "compact", TABLE)
    images = ["a.parquet#row=0", "a.parquet#row=1", "b.png", "c.png"]
    check_counts(pipeline, command, predicted=images, quarantined=[])
    command("predictions", "delete", TABLE, "--image", f"file://{pipeline.images}/c.png", "--yes")
    check_counts(pipeline, command, predicted=images[:3], quarantined=[])


def test_books_and_query_agree_if_no_file_changed(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.save("a.parquet", 1, 2, 3)
    (pipeline.images / "b.png").write_bytes(b"not an image")
    (pipeline.images / "c.png").write_bytes(b"")
    pipeline.classify()
    pipeline.save("d.png", 4)
    pipeline.classify()
    batches = read_books(pipeline.store, TABLE)
    from_books = count_newest(pipeline.store, TABLE, batches)["1"]
    changed = [books.model_copy(update={"superseded": 1}) for books in batches]
    from_rows = count_newest(pipeline.store, TABLE, changed)["1"]
    assert from_rows.predictions.class_counts[: len(CLASS_NAMES)] == strip(from_books.predictions.class_counts)
    assert from_rows.predictions.confidence_histogram == from_books.predictions.confidence_histogram
    assert from_rows.quarantined == from_books.quarantined == 2
    assert [(r.reason, r.images) for r in from_rows.reasons] == [(r.reason, r.images) for r in from_books.reasons]


def strip(counts: list[int]) -> list[int]:
    """Drop the classes after the last one that was predicted."""
    while counts and not counts[-1]:
        counts = counts[:-1]
    return counts


def old_part(store: ObjectStore, folder: str, name: str, rows: pa.Table) -> PartFile:
    """Write a part as it was before Delta Lake."""
    metadata: list[Any] = []
    with store.publish(f"{folder}/{name}") as stream:
        pq.write_table(rows, stream, metadata_collector=metadata)
    found = store.stat(f"{folder}/{name}")
    assert found is not None
    return PartFile(
        name=name, size=found.size, sha256="", etag=found.etag, rows=len(rows), statistics=statistics_of(metadata[0])
    )


def add_migrated_batch(store: ObjectStore, predicted: list[str], quarantined: list[str]) -> None:
    """Add a batch from before Delta Lake, with number 1 and model version 1, as an upgrade does."""
    n = len(predicted)
    kind = pa.list_(pa.float32(), 10)
    rows = pa.table(
        {
            "image": predicted,
            "predicted_class": pa.array([3] * n, pa.int8()),
            "predicted_label": pa.array(["Dress"] * n).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
            "confidence": pa.array([0.5] * n, pa.float32()),
            "probabilities": pa.array([[0.1] * 10] * n, kind),
            "label": pa.nulls(n, pa.int8()),
            "model_version": pa.array(["1"] * n).dictionary_encode(),
        }
    )
    errors = pa.table(
        {
            "image": quarantined,
            "reason": ["damaged: at byte 7"] * len(quarantined),
            "label": pa.nulls(len(quarantined), pa.int8()),
        }
    )
    name = f"batch={MIGRATED}/part-00000.parquet"
    parts = old_part(store, table_folder(TABLE), name, rows)
    error_parts = old_part(store, quarantine_folder(TABLE), name, errors)
    nullable = pa.schema([field.with_nullable(True) for field in prediction_schema()])
    nullable_errors = pa.schema([field.with_nullable(True) for field in quarantine_schema()])
    quarantine = ensure_delta(store, quarantine_folder(TABLE), nullable_errors, name="", description="")
    predictions = ensure_delta(store, table_folder(TABLE), nullable, name="", description="")
    quarantine.add({MIGRATED: [error_parts]})
    books = BatchBooks(
        table=TABLE,
        batch=MIGRATED,
        number=1,
        model_version="1",
        options=ReadOptions().to_record(),
        shards=1,
        planned=n + len(quarantined),
        predicted=n,
        quarantined=len(quarantined),
        seconds=1.0,
        provenance=Provenance.now(),
    )
    write_books(store, [books])
    predictions.add({MIGRATED: [parts]})


def test_migrated_rows_count_once(pipeline: Pipeline, command: Command) -> None:
    folder = f"file://{pipeline.images}"
    add_migrated_batch(pipeline.store, [f"{folder}/old #1.png", f"{folder}/50%.parquet#row=7"], [f"{folder}/bad.png"])
    check_counts(
        pipeline, command, predicted=["50%25.parquet#row=7", "old %231.png"], quarantined=[f"{folder}/bad.png"]
    )
    shown = command.json("predictions", "show", TABLE)["models"]["1"]
    assert shown["classes"]["Dress"]["images"] == 2
    assert [reason["kind"] for reason in shown["reasons"]] == ["damaged"]


def test_newer_file_replaces_its_migrated_rows(pipeline: Pipeline, command: Command) -> None:
    folder = f"file://{pipeline.images}"
    add_migrated_batch(
        pipeline.store,
        [f"{folder}/a #1.parquet#row={row}" for row in range(3)] + [f"{folder}/kept.png", f"{folder}/b.png"],
        [f"{folder}/c.png"],
    )
    pipeline.save("a #1.parquet", 1, 2)
    pipeline.save("c.png", 3)
    (pipeline.images / "b.png").write_bytes(b"not an image")
    write_number(pipeline)
    pipeline.classify()
    images = ["a %231.parquet#row=0", "a %231.parquet#row=1", "c.png", "kept.png"]
    check_counts(pipeline, command, predicted=images, quarantined=["b.png"])


def write_number(pipeline: Pipeline) -> None:
    """Give the migrated batch its number and a plan without its files, so that planning continues after it."""
    from infra.storage.tables.planning.batches import NumberedBatch, take_number
    from infra.storage.tables.planning.plan import PLAN_SCHEMA

    plan = BatchPlan(
        table=TABLE, batch=MIGRATED, number=1, model_version="1", options=ReadOptions().to_record(), shards=1, planned=6
    )
    row = {
        "shard": 0,
        "uri": "file:///elsewhere.png",
        "fingerprint": "1",
        "kind": "image",
        "first_row": 0,
        "rows": 6,
        "offset": 0,
        "size": 1,
        "label": None,
    }
    with pipeline.store.publish(f"work/{TABLE}/{MIGRATED}/plan.parquet") as stream:
        schema = PLAN_SCHEMA.with_metadata({"fmnist_plan": plan.model_dump_json()})
        pq.write_table(pa.Table.from_pylist([row], schema=schema), stream)
    take_number(pipeline.store, TABLE, NumberedBatch(number=1, batch=MIGRATED, model_version="1", options=plan.options))


def test_show_lists_an_unfinished_batch(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    [plan] = pipeline.plan()
    shown = command.json("predictions", "show", TABLE)
    assert [entry["batch"] for entry in shown["unfinished"]] == [plan.batch]
    assert (shown["batches"], shown["models"], shown["class_mix_shift"]) == ([], {}, None)
    assert plan.batch in command("predictions", "show", TABLE)


def test_show_and_list_need_no_work_folder(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    [books] = pipeline.classify()
    assert command.json("predictions", "show", TABLE)["unfinished"] == []
    shutil.rmtree("var/store/work")
    assert [entry["batch"] for entry in command.json("predictions", "list")] == [books.batch]
    shown = command.json("predictions", "show", TABLE)
    assert [entry["batch"] for entry in shown["batches"]] == [books.batch]
    assert shown["models"]["1"]["images"] == 1


def test_show_prints_nothing_on_standard_error(pipeline: Pipeline) -> None:
    pipeline.save("a.png", 1)
    pipeline.classify()
    pipeline.save("a.png", 2)
    pipeline.classify()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "predictions", "show", TABLE],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""


def test_csv_has_a_column_for_each_probability(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a,\"b'.png", 1)
    pipeline.classify()
    command("predictions", "export", TABLE, "--to", "out.csv")
    with Path("out.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["image"] == f"file://{pipeline.images}/a,\"b'.png"
    probabilities = [float(row[f"probability_{number}"]) for number in range(len(CLASS_NAMES))]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert max(probabilities) == pytest.approx(float(row["confidence"]))


def test_export_of_one_model_has_its_rows_only(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    pipeline.classify()
    pipeline.model = pipeline.model.model_copy(update={"version": 2})
    pipeline.classify()
    record = command.json("predictions", "export", TABLE, "--to", "two.parquet", "--model", "2")
    assert record["rows"] == 1
    assert pq.read_table("two.parquet").column("model_version").to_pylist() == ["2"]
    assert command.json("predictions", "export", TABLE, "--to", "all.parquet")["rows"] == 2
    assert "'7'" in command.failed(2, "predictions", "export", TABLE, "--to", "x.csv", "--model", "7")


@pytest.mark.parametrize("target", ["out.json", "out", "images", "missing/out.csv", "folder.csv"])
def test_export_refuses_a_target_that_it_cannot_write(pipeline: Pipeline, command: Command, target: str) -> None:
    pipeline.save("a.png", 1)
    pipeline.classify()
    Path("folder.csv").mkdir()
    assert target.partition("/")[0] in command.failed(2, "predictions", "export", TABLE, "--to", target)


def test_export_that_fails_leaves_the_old_file(pipeline: Pipeline, command: Command) -> None:
    pipeline.save("a.png", 1)
    pipeline.classify()
    Path("out.csv").write_text("old")
    [part] = Path("var/store/predictions/mine/_parts").rglob("*.parquet")
    part.write_bytes(b"damaged")
    assert TABLE in command.failed(1, "predictions", "export", TABLE, "--to", "out.csv")
    part.unlink()
    assert part.name in command.failed(2, "predictions", "export", TABLE, "--to", "out.csv")
    assert Path("out.csv").read_text() == "old"
    assert list(Path().glob(".out.csv*")) == []


SNIPPETS = re.findall(r"^```(python|sql)( \w+)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""Language, name and text of the code in docs/predictions.md."""


def snippet_names(snippets: list[tuple[str, str, str]]) -> list[str]:
    return [f"{language}{number}{name}" for number, (language, name, _) in enumerate(snippets)]


LOCAL = [snippet for snippet in SNIPPETS if snippet[1] != " s3"]
README_SNIPPETS = re.findall(r"^```(python)( \w+)?\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("snippet", LOCAL + README_SNIPPETS, ids=snippet_names(LOCAL + README_SNIPPETS))
def test_documented_snippet_runs(pipeline: Pipeline, snippet: tuple[str, str, str]) -> None:
    pipeline.save("a.parquet", 1, 2, 3)
    (pipeline.images / "b.png").write_bytes(b"not an image")
    pipeline.classify()
    language, name, text = snippet
    if language == "python":
        exec(text, {})  # noqa: S102
    else:
        assert run_sql(text).num_rows == (1 if name == " quarantine" else 3)


def test_documented_queries_of_the_quarantine_leave_out_what_was_predicted_later(
    pipeline: Pipeline,
) -> None:
    pipeline.save("a.parquet", 1, 2, 3)
    for name in ("b.png", "c.png"):
        (pipeline.images / name).write_bytes(b"not an image")
    pipeline.classify()
    pipeline.save("b.png", 4)
    pipeline.classify()
    code = {language: text for language, name, text in SNIPPETS if name == " quarantine"}
    assert pipeline.names(run_sql(code["sql"]).column("image").to_pylist()) == ["c.png"]
    printed: list[Any] = []
    exec(code["python"], {"print": printed.append})  # noqa: S102
    assert pipeline.names(printed[0]["image"].to_list()) == ["c.png"]


def test_documented_query_is_the_one_that_counts(pipeline: Pipeline) -> None:
    [text] = [text for _, name, text in SNIPPETS if name == " newest"]
    sources = TableSources.of(TABLE, lambda folder: f"delta_scan('./var/store/{folder}')")
    assert text == f"{newest_query(sources, is_migrated=False)};\n"


def test_documented_columns_are_those_of_the_tables(pipeline: Pipeline) -> None:
    pipeline.save("a.png", 1)
    pipeline.classify()
    documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE))))
    for folder in ("predictions", "quarantine", "batches"):
        columns = {field.name for field in DeltaTable(f"var/store/{folder}/{TABLE}").schema().fields}
        assert columns - documented == set()


@pytest.fixture
def s3_pipeline(moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    moto_server.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    store = moto_server.new_store()
    monkeypatch.setenv("FMNIST_STORE", store.root)
    pipeline = new_pipeline(store, tmp_path)
    pipeline.save("a.parquet", 1, 2, 3)
    pipeline.classify()
    return pipeline


def hide_environment(moto_server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the settings from the environment to the AWS SDK's files, with temporary credentials."""
    settings = moto_server.environment
    (folder / "config").write_text(
        f"[default]\nregion = eu-central-1\nendpoint_url = {moto_server.endpoint}\n"
        f"aws_access_key_id = {settings['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {settings['AWS_SECRET_ACCESS_KEY']}\naws_session_token = token\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("in_files", [False, True], ids=["environment", "files"])
def test_documented_s3_snippet_takes_the_credentials_that_boto3_finds(
    s3_pipeline: Pipeline, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_files: bool
) -> None:
    [text] = [text for _, name, text in SNIPPETS if name == " s3"]
    if in_files:
        hide_environment(moto_server, tmp_path, monkeypatch)
    found: dict[str, Any] = {}
    exec(text.replace("s3://bucket/prefix", s3_pipeline.store.root), found)  # noqa: S102
    assert found["table"].to_pyarrow_dataset().count_rows() == 3
    assert found["storage_options"].get("aws_session_token") == ("token" if in_files else None)


def test_script_for_s3_holds_no_credentials(s3_pipeline: Pipeline, moto_server: S3Server, command: Command) -> None:
    script = command("predictions", "show", TABLE, "--sql")
    [secret] = [line for line in script.splitlines() if line.startswith("CREATE SECRET")]
    assert moto_server.endpoint.removeprefix("http://") in secret
    assert "credential_chain" in secret
    assert "URL_STYLE 'path'" in secret
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert moto_server.environment[name] not in script


def test_show_and_export_work_on_s3(s3_pipeline: Pipeline, command: Command) -> None:
    assert command.json("predictions", "show", TABLE)["models"]["1"]["images"] == 3
    assert command.json("predictions", "export", TABLE, "--to", "out.parquet")["rows"] == 3
    s3_pipeline.save("a.parquet", 1, 2)
    s3_pipeline.classify()
    assert command.json("predictions", "show", TABLE)["models"]["1"]["images"] == 2
