"""A cluster's tasks have to reach Prefect's server."""

import socket
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.services import _check_that_nodes_reach_prefect, services
from infra.cluster.address import is_this_machine
from infra.errors import RequestError
from infra.orchestration.server import prefect_api
from infra.settings import Settings

ELSEWHERE = "192.0.2.77:6379"
"""Of the addresses that RFC 5737 keeps for documentation."""


def test_cluster_elsewhere_needs_a_named_prefect_server() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(RequestError, match=r"FMNIST_RAY_ADDRESS: .* 192\.0\.2\.77:6379 .* PREFECT_API_URL"),
        services(Settings(ray_address=ELSEWHERE)),
    ):
        pass


def test_named_prefect_server_is_taken() -> None:
    with temporary_settings({PREFECT_API_URL: "http://prefect.example:4200/api"}):
        _check_that_nodes_reach_prefect(Settings(ray_address=ELSEWHERE))


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://localhost:10001", "auto", f"{socket.gethostname()}:6379"])
def test_own_addresses_are_known(address: str) -> None:
    assert is_this_machine(address)


@pytest.mark.parametrize("address", [ELSEWHERE, "ray://192.0.2.77:10001", "nonesuch.invalid:6379"])
def test_others_are_not_this_machine(address: str) -> None:
    assert not is_this_machine(address)


def test_prefect_server_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        prefect_api(tmp_path) as wait_for_prefect,
        pytest.raises(RequestError, match=r"^PREFECT_API_URL: no Prefect server answers at http://127\.0\.0\.1:9/api"),
    ):
        wait_for_prefect()
