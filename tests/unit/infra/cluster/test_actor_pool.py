"""A shard is a suspect only if its actors died on nodes that live."""

import pytest

from infra.cluster import actor_pool


@pytest.mark.parametrize(
    ("died_on", "is_suspect"),
    [
        ([], False),
        (["a"], False),
        (["a", "a"], True),
        (["a", "b"], True),
        (["a", "gone"], False),
        (["gone"] * 3, False),
    ],
)
def test_death_with_its_node_does_not_count(
    died_on: list[str], is_suspect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_pool, "living_nodes", lambda: {"a", "b"})
    assert actor_pool._Shard(0, deaths=len(died_on), nodes=died_on).is_suspect() == is_suspect
