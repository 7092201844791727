"""A Ray that is started without what watches it leaves Ray as it was."""

from typing import Any

import pytest

from infra.upstream.ray_monitoring_processes import without_onlookers


def methods() -> dict[str, Any]:
    from ray._private.node import Node

    return dict(vars(Node))


def test_methods_of_ray_are_replaced_while_it_starts() -> None:
    before = methods()
    with without_onlookers():
        assert methods() != before
    assert methods() == before


def test_methods_of_ray_are_put_back_when_it_did_not_start() -> None:
    before = methods()
    with pytest.raises(RuntimeError, match="not started"), without_onlookers():
        raise RuntimeError("not started")
    assert methods() == before
