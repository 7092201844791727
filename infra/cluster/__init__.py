"""Run work on Ray, and collect its progress, logs and metrics."""
