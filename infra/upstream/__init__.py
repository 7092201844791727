"""Patches of Ray and Prefect internals, one file each.

Each file says what it changes and in which version, why, the gain, the upstream issue, when to remove it, what happens
if the private name is gone, and its test. `TARGETS` lists the private names. A test checks that each still exists.
"""
