"""Run a flow run of a deployment in this process, as `python -m prefect.engine` does.

Prefect imports a deployment's module with the current folder first on `sys.path`. A `flows/` of the user's there would
be imported instead of ours, so ours is imported before.
"""

import importlib
import runpy

_DEPLOYED = "flows.deployed"
"""Module of all entrypoints in infra/deploy/prefect.yaml. Only its name is known here: flows are a layer above."""

if __name__ == "__main__":
    importlib.import_module(_DEPLOYED)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
