"""Test infra/deploy/kubernetes as far as possible without a cluster.

The tests check Kubernetes' resources against its schemas, the RayCluster against KubeRay's, and the Job of a flow run
as Prefect's worker creates it. They also check what no schema covers: permissions, secrets, references, and whether our
image and entrypoint offer what the pods use.
"""

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy import kubernetes_manifests as kubernetes
from tests.deploy.kubernetes_manifests import FOLDER, NAMESPACE, OVERLAYS, ROOT, Manifest, Pod, pods, quantity

VERSIONS = ("1.31", kubernetes_validate.latest_version())
"""Versions of Kubernetes. KubeRay doesn't support older ones."""
RAY_SCHEMA = json.loads((Path(__file__).parent / "raycluster.schema.json").read_text())
OBJECT_STORE = "/dev/shm"  # noqa: S108 # Ray keeps its object store there
DOCUMENTATION = (ROOT / "docs" / "deploy.md").read_text()


@pytest.fixture
def pod(request: pytest.FixtureRequest) -> Pod:
    overlay, name = request.param
    return pods(overlay)[name]


every_pod = pytest.mark.parametrize("pod", kubernetes.all_pods(), indirect=True, ids="-".join)


def test_every_pod_is_checked() -> None:
    assert {(overlay, name) for overlay in OVERLAYS for name in pods(overlay)} == set(kubernetes.all_pods())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_the_manifests(overlay: str, version: str) -> None:
    for manifest in kubernetes.manifests(overlay):
        if manifest["kind"] != "RayCluster":
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_accepts_the_ray_cluster(overlay: str) -> None:
    jsonschema.validate(kubernetes.ray_cluster(overlay), RAY_SCHEMA)


@pytest.mark.parametrize("version", VERSIONS)
@every_pod
def test_kubernetes_accepts_the_pods(pod: Pod, version: str) -> None:
    template = deepcopy(pod.template)
    for field in ("parallelism", "completions"):  # Prefect requires them here, and Kubernetes drops them
        template["spec"].pop(field, None)
    manifest = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "one"}, "template": template}
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_the_autoscaler_container(version: str) -> None:
    options = kubernetes.ray_cluster("base")["spec"]["autoscalerOptions"]
    container = {"name": "autoscaler"} | {
        field: options[field] for field in ("resources", "securityContext", "volumeMounts")
    }
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": {"containers": [container]}}
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_the_job_that_prefect_creates(version: str) -> None:
    job = deepcopy(kubernetes.flow_job())
    for field in ("parallelism", "completions"):
        del job["spec"]["template"]["spec"][field]
    kubernetes_validate.validate(job, version, strict=True)


def test_only_prefect_retries_a_run() -> None:
    job = kubernetes.flow_job()["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["ttlSecondsAfterFinished"] > 0


def test_jobs_outlast_the_longest_flow() -> None:
    import flows.deployed

    longest = max(
        flow.timeout_seconds or 0
        for flow in (flows.deployed.train, flows.deployed.classify, flows.deployed.train_and_classify)
    )
    assert kubernetes.flow_job()["spec"]["activeDeadlineSeconds"] > longest > 0


def test_job_refers_to_its_secrets_and_holds_none() -> None:
    job = kubernetes.flow_job()
    assert "in-clear" not in json.dumps(job)
    by_reference = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in job["spec"]["template"]["spec"]["containers"][0]["env"]
        if "valueFrom" in entry
    }
    assert by_reference == {
        "PREFECT_API_KEY": "fmnist-prefect",
        "PREFECT_API_AUTH_STRING": "fmnist-prefect",
        "RAY_AUTH_TOKEN": "fmnist-ray",
    }


def test_settings_of_the_worker_do_not_move_the_jobs_folders() -> None:
    [container] = kubernetes.flow_job()["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert not {"HOME", "PREFECT_HOME", "FMNIST_STATE_DIR"} & set(variables)
    assert {"FMNIST_RETRIES", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"} <= set(variables)  # of infra/deploy/prefect.yaml


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_repository_holds_no_secret(overlay: str) -> None:
    assert not kubernetes.of_kind(overlay, "Secret")
    text = json.dumps(kubernetes.manifests(overlay)) + (FOLDER / "work-pool.json").read_text()
    for name in re.findall(r'"name": "([A-Z_]*(?:TOKEN|KEY|AUTH_STRING|PASSWORD)[A-Z_]*)", "value"', text):
        assert name.endswith(("_SECRET_NAME", "_SECRET_KEY")), name


@every_pod
def test_everything_a_pod_refers_to_exists(pod: Pod) -> None:
    accounts, settings = kubernetes.named("base", "ServiceAccount"), kubernetes.named("base", "ConfigMap")
    assert pod.spec["serviceAccountName"] in accounts
    for source in pod.container["envFrom"]:
        if "configMapRef" in source:
            assert source["configMapRef"]["name"] in settings
    for secret in _secrets(pod):
        assert f"kubectl -n {NAMESPACE} create secret generic {secret} " in DOCUMENTATION
    volumes = {volume["name"] for volume in pod.spec["volumes"]}
    mounted = {mount["name"] for mount in pod.container["volumeMounts"]}
    assert mounted <= volumes
    if pod.name != "ray-head":  # the rest is the autoscaler's
        assert mounted == volumes


def _secrets(pod: Pod) -> set[str]:
    sources = [source["secretRef"]["name"] for source in pod.container["envFrom"] if "secretRef" in source]
    entries = pod.container.get("env", [])
    keys = [entry["valueFrom"].get("secretKeyRef", {}).get("name") for entry in entries if "valueFrom" in entry]
    return {name for name in [*sources, *keys] if name}


def test_nodes_and_drivers_share_one_ray_token() -> None:
    options = kubernetes.ray_cluster("base")["spec"]["authOptions"]
    assert options == {"mode": "token", "secretName": "fmnist-ray"}
    # KubeRay asks for this key.
    assert re.search(r"create secret generic fmnist-ray [^\n]*--from-literal=auth_token=", DOCUMENTATION)
    for pod in pods("gpu").values():
        if pod.is_ray_node:
            assert "fmnist-s3" in _secrets(pod)
            # Only the flow calls Prefect. Ray's workers don't.
            assert ("fmnist-prefect" in _secrets(pod)) == (pod.name == "flow-run")


@every_pod
def test_containers_have_minimal_privileges(pod: Pod) -> None:
    _check_hardened(pod.container["securityContext"])
    assert pod.spec["securityContext"]["runAsNonRoot"] is True
    assert pod.spec["securityContext"]["runAsUser"] > 0
    assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
    assert all({"emptyDir", "projected"} & set(volume) for volume in pod.spec["volumes"])


def test_autoscaler_has_minimal_privileges() -> None:
    _check_hardened(kubernetes.ray_cluster("base")["spec"]["autoscalerOptions"]["securityContext"])


def _check_hardened(context: Manifest) -> None:
    assert context == {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@every_pod
def test_containers_have_requests_and_limits(pod: Pod) -> None:
    _check_resources(pod.container["resources"])
    for volume in pod.spec["volumes"]:
        if "emptyDir" in volume:
            assert quantity(volume["emptyDir"]["sizeLimit"]) > 0
            if volume["emptyDir"].get("medium") != "Memory":
                limit = pod.container["resources"]["limits"]["ephemeral-storage"]
                assert quantity(volume["emptyDir"]["sizeLimit"]) <= quantity(limit)


def test_autoscaler_has_requests_and_limits() -> None:
    resources = kubernetes.ray_cluster("base")["spec"]["autoscalerOptions"]["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"]) & set(resources["limits"])


def _check_resources(resources: Manifest) -> None:
    requests, limits = resources["requests"], resources["limits"]
    assert {"cpu", "memory", "ephemeral-storage"} <= set(requests)
    assert set(requests) == set(limits)
    for name, amount in requests.items():
        assert 0 < quantity(amount) <= quantity(limits[name]), name


@every_pod
def test_services_have_probes(pod: Pod) -> None:
    probes = {"startupProbe", "readinessProbe", "livenessProbe"}
    assert probes & set(pod.container) == (probes if pod.is_service else set())


@every_pod
def test_ray_writes_only_to_volumes(pod: Pod) -> None:
    if not pod.is_ray_node:
        return
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
    # The two folders that the image writes to, and the one of Ray's object store.
    written = re.search(r"^VOLUME (\[.*\])$", _containerfile(), re.MULTILINE)
    assert written is not None
    assert set(mounts) == {*json.loads(written[1]), OBJECT_STORE}
    [memory] = [volume["emptyDir"] for volume in pod.spec["volumes"] if volume["name"] == mounts[OBJECT_STORE]]
    assert memory["medium"] == "Memory"
    assert quantity(memory["sizeLimit"]) < quantity(pod.container["resources"]["limits"]["memory"])


def test_object_stores_fit_into_their_memory() -> None:
    spec = kubernetes.ray_cluster("gpu")["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        [memory] = [v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shared-memory"]
        assert int(group["rayStartParams"]["object-store-memory"]) < quantity(memory["sizeLimit"])


@every_pod
def test_only_prefects_worker_has_a_kubernetes_token(pod: Pod) -> None:
    assert pod.spec["automountServiceAccountToken"] is (pod.name == "prefect-worker")
    tokens = {volume["name"] for volume in pod.spec["volumes"] if "projected" in volume}
    # The head's token is for the autoscaler next to it, not for code that runs in Ray.
    assert tokens == ({"kubernetes"} if pod.name == "ray-head" else set())
    assert not tokens & {mount["name"] for mount in pod.container["volumeMounts"]}


def test_autoscaler_finds_its_token_where_rays_code_looks() -> None:
    from ray.autoscaler._private.kuberay import node_provider

    [mount] = [
        mount
        for mount in kubernetes.ray_cluster("base")["spec"]["autoscalerOptions"]["volumeMounts"]
        if mount["name"] == "kubernetes"
    ]
    assert f"{mount['mountPath']}/token" == node_provider.IN_CLUSTER_TOKEN_PATH
    assert f"{mount['mountPath']}/ca.crt" == node_provider.IN_CLUSTER_CA_CERT_PATH


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_permissions_are_those_that_prefects_worker_uses(overlay: str) -> None:
    assert not kubernetes.of_kind(overlay, "ClusterRole") + kubernetes.of_kind(overlay, "ClusterRoleBinding")
    [role], [binding] = kubernetes.of_kind(overlay, "Role"), kubernetes.of_kind(overlay, "RoleBinding")
    allowed = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert allowed == {
        ("batch", "jobs"): {"create", "delete", "get", "list", "watch"},
        ("", "pods"): {"get", "list", "watch"},
        ("", "pods/log"): {"get"},
    }
    assert binding["roleRef"]["kind"] == "Role"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [(who["kind"], who["name"], who["namespace"]) for who in binding["subjects"]] == [
        ("ServiceAccount", "prefect-worker", NAMESPACE)
    ]


def test_prefects_worker_watches_only_its_namespace() -> None:
    assert kubernetes.worker_environment()["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == NAMESPACE
    assert kubernetes.flow_job()["metadata"]["namespace"] == NAMESPACE


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_the_namespace(overlay: str) -> None:
    for manifest in kubernetes.manifests(overlay):
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == NAMESPACE
    assert list(kubernetes.named(overlay, "Namespace")) == [NAMESPACE]


def test_network_is_closed_except_for_listed_peers() -> None:
    policies = kubernetes.named("base", "NetworkPolicy")
    assert policies["nothing"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    incoming = {
        (name, json.dumps(peer), tuple(port["port"] for port in rule.get("ports", [])))
        for name, policy in policies.items()
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
    }
    # The dashboard's port isn't open. Only Ray's own nodes may connect to all ports.
    assert incoming == {
        ("ray", '{"podSelector": {"matchLabels": {"fmnist-jobs/ray": "node"}}}', ()),
        ("metrics", '{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}', (8080,)),
    }
    for policy in policies.values():
        for rule in policy["spec"].get("egress", []):
            assert rule.get("ports") or rule["to"] == [{"podSelector": {"matchLabels": {"fmnist-jobs/ray": "node"}}}]


def test_network_policies_select_the_right_pods() -> None:
    chosen = {
        name: {pod.name for pod in pods("gpu").values() if _matches(policy["spec"]["podSelector"], pod)}
        for name, policy in kubernetes.named("gpu", "NetworkPolicy").items()
    }
    everything = set(pods("gpu"))
    ray = everything - {"prefect-worker"}
    assert chosen == {
        "nothing": everything,
        "names": everything,
        "services": everything,
        "ray": ray,
        "metrics": ray,
        "kubernetes-of-the-worker": {"prefect-worker"},
        "kubernetes-of-the-autoscaler": {"ray-head"},
    }


def test_disruption_budget_protects_the_head() -> None:
    [budget] = kubernetes.of_kind("gpu", "PodDisruptionBudget")
    assert [pod.name for pod in pods("gpu").values() if _matches(budget["spec"]["selector"], pod)] == ["ray-head"]


def _matches(selector: Manifest, pod: Pod) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= pod.labels.items()


@every_pod
def test_ray_pods_expose_the_metrics_port(pod: Pod) -> None:
    if pod.is_ray_node and pod.is_service:
        assert {"name": "metrics", "containerPort": 8080} in pod.container["ports"]


def test_ray_serves_metrics_on_that_port() -> None:
    spec = kubernetes.ray_cluster("gpu")["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert group["rayStartParams"]["metrics-export-port"] == "8080"


def test_ray_knows_the_options_of_ray_start() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    spec = kubernetes.ray_cluster("gpu")["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


def test_head_offers_no_cpus_and_gpus() -> None:
    parameters = kubernetes.ray_cluster("base")["spec"]["headGroupSpec"]["rayStartParams"]
    assert (parameters["num-cpus"], parameters["num-gpus"]) == ("0", "0")


def test_gpu_nodes_scale_from_zero() -> None:
    spec = kubernetes.ray_cluster("gpu")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    group = kubernetes.node_groups("gpu")["gpu"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    assert group["maxReplicas"] > 0
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(group["rayStartParams"]["num-gpus"]) == limits["nvidia.com/gpu"] == 1
    assert group["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_name_the_clusters_maximum_size(overlay: str) -> None:
    cpus = gpus = 0
    for group in kubernetes.node_groups(overlay).values():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["maxReplicas"] * int(limits["cpu"])
        gpus += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    settings = kubernetes.named(overlay, "ConfigMap")["fmnist-settings"]["data"]
    assert (settings["FMNIST_RAY_MAX_CPUS"], settings["FMNIST_RAY_MAX_GPUS"]) == (str(cpus), str(gpus))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_exist_in_the_project(overlay: str) -> None:
    from infra.settings import Settings

    known = {f"FMNIST_{name.upper()}" for name in Settings.model_fields}
    variables = set(kubernetes.named(overlay, "ConfigMap")["fmnist-settings"]["data"])
    variables |= {entry["name"] for entry in pods(overlay)["flow-run"].container["env"]}
    assert {name for name in variables if name.startswith("FMNIST_")} <= known


def test_gpu_nodes_differ_from_cpu_nodes_only_by_the_gpu() -> None:
    groups = kubernetes.node_groups("gpu")
    assert _without_sizes(groups["gpu"]) == _without_sizes(groups["cpu"])


def _without_sizes(group: Manifest) -> Any:
    rest = deepcopy(group)
    for name in ("groupName", "replicas", "minReplicas", "maxReplicas"):
        del rest[name]
    rest["rayStartParams"].pop("num-gpus", None)
    for name in ("nodeSelector", "tolerations"):
        rest["template"]["spec"].pop(name, None)
    del rest["template"]["spec"]["containers"][0]["resources"]
    return rest


def test_versions_match_the_lock() -> None:
    assert kubernetes.ray_cluster("base")["spec"]["rayVersion"] == kubernetes.locked_version("ray")
    image = pods("base")["prefect-worker"].container["image"]
    assert re.fullmatch(rf"prefecthq/prefect:{kubernetes.locked_version('prefect')}-python3\.\d+-kubernetes", image)


def test_drivers_and_nodes_have_one_image() -> None:
    images = {pod.container["image"] for overlay in OVERLAYS for pod in pods(overlay).values() if pod.is_ray_node}
    assert len(images) == 1


@every_pod
def test_image_has_the_programs_that_pods_run(pod: Pod) -> None:
    if not pod.is_ray_node:
        return
    user = pod.spec["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in _containerfile()
    assert "command" not in pod.container  # KubeRay sets its own, and a driver uses the image's entrypoint
    roles = re.findall(
        r"^([a-z]+)\) ", (ROOT / "infra" / "deploy" / "containers" / "entrypoint.sh").read_text(), re.MULTILINE
    )
    if pod.name == "flow-run":
        assert pod.container["args"] == ["driver", "prefect", "flow-run", "execute"]
        assert "driver" in roles
        return
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = " ".join(pod.container[name]["exec"]["command"])
        called = re.search(r"sh (\S+)/entrypoint\.sh (\w+)", command)
        assert called is not None
        assert f"{called[1]}/" in _containerfile()
        assert called[2] in roles
    assert pod.container["lifecycle"]["preStop"]["exec"]["command"][0] == "/opt/fmnist/bin/ray"


def _containerfile() -> str:
    return (ROOT / "infra" / "deploy" / "containers" / "Containerfile").read_text()


def test_drivers_connect_to_the_service_that_kuberay_creates() -> None:
    name = kubernetes.ray_cluster("base")["metadata"]["name"]
    [container] = kubernetes.flow_job()["spec"]["template"]["spec"]["containers"]
    assert {"name": "FMNIST_RAY_ADDRESS", "value": f"{name}-head-svc:6379"} in container["env"]


def test_prefect_accepts_the_work_pool_and_the_deployments(tmp_path: Path) -> None:
    """Create the pool with the command of docs/deploy.md, and the deployments of infra/deploy/prefect.yaml."""
    from infra.orchestration.server import prefect_api

    commands = [
        [
            "work-pool",
            "create",
            "fmnist",
            "--type",
            "kubernetes",
            "--base-job-template",
            str(FOLDER / "work-pool.json"),
        ],
        ["--no-prompt", "deploy", "--all", "--prefect-file", str(ROOT / "infra" / "deploy" / "prefect.yaml")],
    ]
    with prefect_api(tmp_path) as wait_for_prefect:
        environment = kubernetes.clean_environment(tmp_path, PREFECT_API_URL=wait_for_prefect())
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "prefect", *command],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        expected = {deployment["name"] for deployment in _deployments()}
        assert _deployed_to("kubernetes") == expected


def _deployments() -> list[Manifest]:
    definitions: list[Manifest] = yaml.safe_load((ROOT / "infra" / "deploy" / "prefect.yaml").read_text())[
        "deployments"
    ]
    return definitions


def _deployed_to(kind: str) -> set[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        pool = client.read_work_pool("fmnist")
        assert pool.type == kind
        assert pool.base_job_template == json.loads((FOLDER / "work-pool.json").read_text())
        return {deployment.name for deployment in client.read_deployments()}
