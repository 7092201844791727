"""Prefect: server, worker, deployments and what a flow run shows."""
