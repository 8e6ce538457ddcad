"""A reset reaches a waiting trainer at any instant, also between two of its looks."""

import pytest

from tfdist import Barrier, BarrierBroken, local_cluster


@pytest.mark.parametrize("kind", ["queue", "counter"])
def test_a_reset_right_after_a_waiting_trainer_has_looked_is_an_error_for_it(kind, monkeypatch):
    with local_cluster(num_ps=1, num_workers=2, backend="threads") as cluster:
        one, other = (Barrier(task, "end", kind=kind) for task in cluster.trainers)
        look = one._look

        def look_and_be_reset(*arguments):
            snapshot = look(*arguments)
            monkeypatch.undo()
            other.reset()
            return snapshot

        monkeypatch.setattr(one, "_look", look_and_be_reset)
        with one, other, pytest.raises(BarrierBroken, match="reset"):
            one.wait(timeout=5)
