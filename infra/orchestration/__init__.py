"""Run Prefect's server and worker, deploy flows, and show flow runs' progress in Prefect."""
