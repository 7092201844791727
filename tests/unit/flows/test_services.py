"""Prefect's API for a run."""

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.errors import RequestError
from infra.orchestration.server import prefect_api


def test_prefect_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        prefect_api(tmp_path) as wait_for_prefect,
        pytest.raises(RequestError) as refused,
    ):
        wait_for_prefect()
    assert "PREFECT_API_URL" in str(refused.value)
    assert "http://127.0.0.1:9/api" in str(refused.value)
