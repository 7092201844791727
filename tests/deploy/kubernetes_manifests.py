"""Render the manifests of infra/deploy/kubernetes, and list their pods."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.harness.absent import install
from tests.harness.commands import user_environment

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "deploy" / "kubernetes"
OVERLAYS = ("base", "gpu")
NAMESPACE = "fmnist"
_LOCK = Path(__file__).with_name("kubernetes.lock")
Manifest = dict[str, Any]


@cache
def manifests(overlay: str) -> list[Manifest]:
    """Render an overlay with `kubectl kustomize`."""
    if shutil.which("kubectl") is None:
        install("kubernetes-client", "kubectl")
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests(overlay) if manifest["kind"] == kind]


def named(overlay: str, kind: str) -> dict[str, Manifest]:
    return {manifest["metadata"]["name"]: manifest for manifest in of_kind(overlay, kind)}


def ray_cluster(overlay: str) -> Manifest:
    [cluster] = of_kind(overlay, "RayCluster")
    return cluster


def node_groups(overlay: str) -> dict[str, Manifest]:
    return {group["groupName"]: group for group in ray_cluster(overlay)["spec"]["workerGroupSpecs"]}


def worker_environment() -> dict[str, str]:
    """Return the environment of the worker's pod, with secrets that are easy to find in other places."""
    [container] = named("base", "Deployment")["prefect-worker"]["spec"]["template"]["spec"]["containers"]
    of_the_pod = {"metadata.namespace": NAMESPACE, "metadata.name": "prefect-worker-1"}
    variables = {
        entry["name"]: entry["value"] if "value" in entry else of_the_pod[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }
    settings = named("base", "ConfigMap")["fmnist-settings"]["data"]
    return settings | variables | {"PREFECT_API_KEY": "key-in-clear", "PREFECT_API_AUTH_STRING": "password-in-clear"}


@contextmanager
def prefect_kubernetes() -> Iterator[str]:
    """Install Prefect's Kubernetes worker into a temporary folder. This environment doesn't have it."""
    with TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--require-hashes", "--requirement", str(_LOCK), "--target", folder]
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "pip", "install", *options], check=True, timeout=120)
        yield folder


@cache
def flow_job() -> Manifest:
    """Return the Job of a flow run, as Prefect's worker sends it to Kubernetes."""
    definitions = yaml.safe_load((ROOT / "infra" / "deploy" / "prefect.yaml").read_text())
    variables = definitions["definitions"]["pool"]["job_variables"]
    with TemporaryDirectory() as home, prefect_kubernetes() as packages:
        # Nothing listens at this address. The worker's log isn't needed.
        own = {"HOME": home, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PYTHONPATH": f"{ROOT}:{packages}"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.deploy.kubernetes_job", FOLDER / "work-pool.json", json.dumps(variables)],
            env=user_environment() | worker_environment() | own,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    job: Manifest = json.loads(done.stdout.splitlines()[-1])
    return job


@dataclass(frozen=True)
class Pod:
    """One kind of pod."""

    name: str
    template: Manifest
    is_service: bool
    """Whether the pod has to stay up. Others end on their own."""
    added_labels: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> Manifest:
        spec: Manifest = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        return {**self.template["metadata"]["labels"], **self.added_labels}

    @property
    def container(self) -> Manifest:
        [container] = self.spec["containers"]
        return dict(container)

    @property
    def is_ray_node(self) -> bool:
        return self.labels.get("fmnist-jobs/ray") == "node"


@cache
def pods(overlay: str) -> dict[str, Pod]:
    """Return every kind of pod by name. Ray's pods have the labels that KubeRay adds."""
    spec = ray_cluster(overlay)["spec"]
    cluster = {"ray.io/cluster": ray_cluster(overlay)["metadata"]["name"]}
    head = {"ray.io/node-type": "head", "ray.io/group": "headgroup"} | cluster
    found = [
        Pod("prefect-worker", named(overlay, "Deployment")["prefect-worker"]["spec"]["template"], is_service=True),
        Pod("flow-run", flow_job()["spec"]["template"], is_service=False),
        Pod("ray-head", spec["headGroupSpec"]["template"], is_service=True, added_labels=head),
    ]
    for name, group in node_groups(overlay).items():
        labels = {"ray.io/node-type": "worker", "ray.io/group": name} | cluster
        found.append(Pod(f"ray-{name}", group["template"], is_service=True, added_labels=labels))
    return {pod.name: pod for pod in found}


def all_pods() -> list[tuple[str, str]]:
    """Return all pairs of overlay and pod name, without rendering. Parametrised tests need them at collection."""
    names = {"base": ["cpu"], "gpu": ["cpu", "gpu"]}
    common = ["prefect-worker", "flow-run", "ray-head"]
    return [(overlay, pod) for overlay in OVERLAYS for pod in [*common, *(f"ray-{name}" for name in names[overlay])]]


def locked_version(package: str) -> str:
    """Return a package's version in requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    [version] = [line.split("==")[1].split()[0] for line in lines if line.startswith(f"{package}==")]
    return version


def quantity(text: str | int) -> float:
    """Parse a Kubernetes quantity, such as 500m, 2 or 4Gi."""
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9}
    for unit, factor in units.items():
        if str(text).endswith(unit):
            return float(str(text).removesuffix(unit)) * factor
    return float(text)


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], **variables}
