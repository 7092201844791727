"""Check the events that operators send notifications for, and runs that other programs start over HTTP."""

from pathlib import Path
from typing import Any

import numpy as np

from fmnist_model.images.decode import encode_png
from tests.harness.served import Served, until


def test_events_report_a_high_error_share_and_a_moved_class_mix(served: Served, re_score: str, tmp_path: Path) -> None:
    # The run re_score put test images of all ten classes into the same table.
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(encode_png(np.full((28, 28), number, np.uint8)))
    for number in range(3):
        (tmp_path / f"broken-{number}.png").write_bytes(b"not an image")
    run = served.start("classify", inputs=[str(tmp_path)])
    assert served.wait(run) == "Failed"
    words = ("3 of 63", " 1%")
    until(lambda: all(word in served.messages(run) for word in words), 60)  # the last lines arrive after the state

    over = event(served, "fmnist.batch.over-error-share", run)
    assert over["resource"]["prefect.resource.id"] == "fmnist.table.predictions"
    assert over["payload"]["share"] == 3 / 63
    assert over["payload"]["allowed"] == 0.01
    moved = event(served, "fmnist.batch.class-mix-moved", run)
    assert moved["payload"]["after"] == over["payload"]["batch"]
    assert moved["payload"]["index"] > 0.25


def test_http_request_runs_once_and_is_refused_for_a_value_out_of_bounds(served: Served, re_score: str) -> None:
    path = f"/deployments/{served.deployment('classify')['id']}/create_flow_run"
    request = {"parameters": {"parameters": {"table": "by-http"}}, "idempotency_key": "new-images"}
    runs = [served.post(path, request)["id"] for _ in range(2)]
    assert runs[0] == runs[1]
    assert served.wait(runs[0]) == "Completed"

    answer = served.api.post(path, json={"parameters": {"parameters": {"max_error_share": 2}}})
    assert answer.is_client_error
    assert "2 is greater than the maximum of 1" in answer.text


def event(served: Served, name: str, run: str) -> dict[str, Any]:
    """Wait for the server to store the only event of this name that a run emitted."""

    def found() -> list[dict[str, Any]]:
        events = served.post("/events/filter", {"filter": {"event": {"name": [name]}}})["events"]
        return [one for one in events if f"prefect.flow-run.{run}" in resources(one)]

    [emitted] = until(found, 60)
    return dict(emitted)


def resources(emitted: dict[str, Any]) -> list[str]:
    """Return the ids of the resources that an event is related to."""
    return [related["prefect.resource.id"] for related in emitted["related"]]
