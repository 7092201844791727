"""Ray: the cluster, its workers and their progress."""
