"""Damaged images, containers and lists: no exception leaves the border of one image, and the books balance."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fmnist_model.images.decode import decode_image
from infra.storage.input_files import list_input_files
from tests.chaos.mutated_inputs import MutatedInputs, make_inputs

_LOOSE, _CONTAINERS = 1200, 10


@pytest.mark.rounds(full=32, short=1)
@pytest.mark.timeout(600)
def test_damaged_inputs_are_decoded_or_rejected_one_by_one(seed: int, tmp_path: Path) -> None:
    print(f"seed {seed}")
    inputs = make_inputs(tmp_path, seed, loose=_LOOSE, containers=_CONTAINERS)
    found = _read(inputs)
    for location, result in found.items():
        _check_books(location, result)
    loose = found[str(tmp_path / "loose")]
    assert loose["planned"] == _LOOSE
    _check_intact_images(inputs, loose)
    _check_that_lists_agree(found, dict(loose["decoded"]))
    kinds = Counter(reason.partition(":")[0] for result in found.values() for _, reason in result["rejected"])
    print(f"{sum(len(result['decoded']) for result in found.values())} decoded, rejected: {dict(kinds)}")


def _read(inputs: MutatedInputs) -> dict[str, Any]:
    """Read every location in a process of its own. A location is a folder or a list."""
    folder = inputs.folder
    locations = [folder / "loose", folder / "containers", *sorted((folder / "lists").iterdir())]
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.chaos.read_inputs", *map(str, locations)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _check_books(location: str, result: dict[str, Any]) -> None:
    uris = [uri for uri, _ in [*result["decoded"], *result["rejected"]]]
    assert len(uris) == result["planned"], location
    twice = [uri for uri, count in Counter(uris).items() if count > 1]
    assert not twice, f"{location}: {twice[:3]}"
    for uri, reason in result["rejected"]:
        assert reason, uri
        assert "\n" not in reason, (uri, reason)
        assert len(reason) < 1000, (uri, reason)
    if result["refused"]:
        assert "/lists/" in location, f"{location} is refused: {result['refused']}"
        assert location in result["refused"]


def _check_intact_images(inputs: MutatedInputs, loose: dict[str, Any]) -> None:
    """The images that weren't damaged come out as if they were alone."""
    decoded = dict(loose["decoded"])
    for path, data in inputs.intact.items():
        [file] = list_input_files(path)
        assert decoded.get(file.uri) == hashlib.sha256(decode_image(data).tobytes()).hexdigest(), path


def _check_that_lists_agree(found: dict[str, Any], decoded: dict[str, str]) -> None:
    """An image that is read through a list comes out as it does from its folder."""
    for location, result in found.items():
        if "/lists/" in location:
            assert dict(result["decoded"]).items() <= decoded.items(), location
