"""The search of tests/unit in larger worlds."""

import pytest

from tests.split_worlds import Kind, explore, stuck

KINDS = {
    "3 trainers": Kind((2, 1), trainers=3, limit=1),
    "one split, 2 faults": Kind((3,), limit=2),
    "2 dead letters": Kind((2, 1), limit=2, retries=0),
    "2 epochs": Kind((2, 1), limit=1, epochs=2),
    "a checkpoint": Kind((2,), limit=1, saves=True),
}


@pytest.mark.rotates(1)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_record_is_accounted_for_and_the_living_trainers_can_finish(kind):
    graph = explore(kind)
    assert stuck(graph, kind.epochs) == set()
