"""Check the monitoring files with Prometheus's own tool, and the metrics that they name."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infra.cluster.prometheus import Counter, Gauge
from tasks import prometheus as work_metrics
from tests.harness.absent import install

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "deploy" / "monitoring"
EXPORTED = {f"ray_{found.name}" for found in vars(work_metrics).values() if isinstance(found, Counter | Gauge)}


@pytest.fixture(scope="module")
def promtool() -> str:
    """Return the name of Prometheus's checker, or skip if it isn't installed."""
    if shutil.which("promtool") is None:
        install("prometheus", "promtool")
    return "promtool"


@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yaml"], ["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]],
    ids=" ".join,
)
def test_promtool_accepts_the_monitoring_files(command: list[str], promtool: str) -> None:
    done = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_uses_only_exported_or_recorded_metrics() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    recorded = set(re.findall(r"record: (\S+)", (FOLDER / "rules.yaml").read_text()))
    assert set(re.findall(r"node:\w+:sum", shown)) <= recorded
    assert set(re.findall(r"\bray_fmnist_\w+", shown)) <= EXPORTED


def test_operations_page_documents_every_metric_and_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "rules.yaml").read_text()))
    assert {name for name in EXPORTED | alerts if name not in page} == set()
