"""The main job on a cluster whose nodes share nothing but the network, and have nothing of this project installed."""

from pathlib import Path

from tests.cluster import ray_cluster
from tests.commands import fmnist
from tests.s3_server import S3Server

pytest_plugins = ["tests.gateways"]


def test_main_job_takes_nothing_but_settings_to_a_cluster(ceph_gateway: S3Server, tmp_path: Path) -> None:
    settings = {"FMNIST_STORE": f"s3://{ceph_gateway.bucket}/cluster", "FMNIST_STATE_DIR": str(tmp_path / "state")}
    with ray_cluster(tmp_path, ceph_gateway.environment) as cluster:
        for name in ("one", "two"):
            cluster.add_node(name, cpus=1)
        environment = settings | ceph_gateway.environment | cluster.environment
        result = fmnist("run", "--preset", "quick", "--epochs", "2", "--workers", "2", **environment)
    assert result.returncode == 0, result.stderr
    assert "the same to the image" in result.stdout
