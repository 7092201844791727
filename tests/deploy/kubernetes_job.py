"""Print the Job that Prefect's Kubernetes worker creates to run a flow.

Run it with the environment of the worker's pod, and the work pool of infra/deploy/kubernetes. The worker is Prefect's
own. A server that stores its request stands in for Kubernetes.
"""

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

_SENT: list[dict[str, Any]] = []


class _Kubernetes(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        _SENT.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = json.dumps({"metadata": {"name": "made", "namespace": self.path.split("/")[-2]}}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


async def _run(template: dict[str, Any], variables: dict[str, Any], url: str) -> None:
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes import KubernetesWorker
    from prefect_kubernetes.credentials import KubernetesClusterConfig
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    # This refuses variables that the template lacks, and values of the wrong type.
    configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(
        base_job_template=template, values=variables
    )
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
    }
    configuration.cluster_config = KubernetesClusterConfig(config=kubeconfig, context_name="here")
    flow_run = FlowRun(id=uuid4(), flow_id=uuid4(), name="brave-otter")
    configuration.prepare_for_flow_run(flow_run)
    await KubernetesWorker(work_pool_name="fmnist").run(flow_run, configuration)


def main() -> None:
    template, variables = json.loads(Path(sys.argv[1]).read_text()), json.loads(sys.argv[2])
    server = HTTPServer(("127.0.0.1", 0), _Kubernetes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asyncio.run(_run(template, variables, f"http://127.0.0.1:{server.server_port}"))
    [job] = _SENT
    print(json.dumps(job))  # noqa: T201


if __name__ == "__main__":
    main()
