"""An image that kills its workers is quarantined. The rest of its table is classified, now and later."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmnist_model.images.decode import encode_png
from infra.storage.keys import quarantine_folder, table_folder
from infra.storage.object_store import ObjectStore, open_store
from infra.storage.tables.delta import open_delta
from tests.benchmarks.classification import make_model
from tests.harness.commands import fmnist
from tests.harness.deadly_images import deadly_bmp, install
from tests.harness.tables import check_committed_batches

IMAGES = 200


@pytest.mark.timeout(600)
def test_image_that_kills_its_workers_is_quarantined(tmp_path: Path) -> None:
    images, store = tmp_path / "images", open_store(f"file://{tmp_path}/store")
    images.mkdir()
    for number in range(IMAGES - 1):
        save(images / f"{number:03}.png", number)
    (images / "100.bmp").write_bytes(deadly_bmp())
    make_model(f"file://{tmp_path}/store")

    first = classify(tmp_path)
    assert (first["predicted"], first["quarantined"]) == (IMAGES - 1, 1)
    [(image, reason)] = quarantined(store)
    assert image == f"file://{images}/100.bmp"
    assert reason.startswith("crashed: ")
    assert "SIGSEGV" in reason

    save(images / "new.png", IMAGES)
    second = classify(tmp_path)
    assert (second["predicted"], second["quarantined"]) == (1, 0)
    predictions = open_delta(store, table_folder("t"))
    assert predictions is not None
    assert predictions.dataset().count_rows() == IMAGES
    check_committed_batches(store, "t")


def save(path: Path, number: int) -> None:
    path.write_bytes(encode_png(np.full((28, 28), number, np.uint8)))


def classify(folder: Path) -> dict[str, Any]:
    """Run the command, and return what it printed."""
    settings = {"FMNIST_STORE": f"{folder}/store", "FMNIST_STATE_DIR": f"{folder}/state"}
    done = fmnist("classify", f"{folder}/images", "--table", "t", "--json", **settings | install(folder / "site"))
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def quarantined(store: ObjectStore) -> list[tuple[str, str]]:
    """Return each quarantined image and its reason."""
    table = open_delta(store, quarantine_folder("t"))
    assert table is not None
    rows = table.dataset().to_table(columns=["image", "reason"])
    return list(zip(rows.column("image").to_pylist(), rows.column("reason").to_pylist(), strict=True))
