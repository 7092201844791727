"""Tests of what is not on every machine: skipped where it is absent; in CI its absence is a failure."""

import os
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"


def needs(present: bool, what: str) -> pytest.MarkDecorator:
    """Mark a test that needs something; in CI it runs, and fails where that is absent."""
    return pytest.mark.skipif(not present and not IN_CI, reason=what)


def missing(what: str) -> NoReturn:
    """End a test that found something absent."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)
