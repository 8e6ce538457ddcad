"""The rules of the splits under every interleaving of trainers and faults in small worlds."""

import pytest

from tests.split_worlds import Kind, explore, stuck

KINDS = {  # tests/chaos has larger ones
    "no fault": Kind((3, 2), trainers=3),
    "2 trainers": Kind((2, 2), limit=1),
    "3 trainers": Kind((1, 1), trainers=3, limit=1),
    "one split": Kind((3,), limit=1),
    "dead letter": Kind((2, 1), limit=1, retries=0),
    "2 epochs": Kind((1, 1), limit=1, epochs=2),
    "a checkpoint": Kind((1,), limit=1, saves=True),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_record_is_accounted_for_and_the_living_trainers_can_finish(kind):
    graph = explore(kind)
    assert stuck(graph, kind.epochs) == set()
