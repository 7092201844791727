"""Start Ray without its monitoring processes."""

import logging
from typing import Any

import pytest

from infra.upstream.ray_monitoring_processes import without_monitoring_processes


def methods() -> dict[str, Any]:
    from ray._private.node import Node

    return dict(vars(Node))


def test_methods_are_replaced_only_inside_the_block() -> None:
    before = methods()
    with without_monitoring_processes():
        assert methods() != before
    assert methods() == before


def test_methods_are_restored_after_a_failed_start() -> None:
    before = methods()
    with pytest.raises(RuntimeError), without_monitoring_processes():
        raise RuntimeError
    assert methods() == before


def test_missing_private_name_is_logged_and_skips_the_patch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private.node import Node

    monkeypatch.delattr(Node, "start_monitor")
    before = methods()
    with caplog.at_level(logging.WARNING), without_monitoring_processes():
        assert methods() == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "start_monitor" in caplog.text
