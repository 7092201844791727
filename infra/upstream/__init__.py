"""Patches of Ray and Prefect internals, one file each."""
