"""Define the steps of the flows as Prefect tasks. Only this package starts Ray work."""
