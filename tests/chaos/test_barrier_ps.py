"""The ps that keeps the barrier is lost."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tfdist import Barrier, BarrierBroken
from tfdist.testing import poll_until

TIMEOUT = 60.0


@pytest.mark.parametrize("kind", ["queue", "counter"])
def test_those_that_wait_are_told_long_before_their_timeout_that_the_ps_was_killed(
    make_cluster, no_leaks, kind
):
    cluster = make_cluster(1, 2, backend="processes")
    one, other = (Barrier(task, "end", kind=kind) for task in cluster.trainers)
    with one, other, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.wait, TIMEOUT)
        poll_until(lambda: other.n_waiting == 1, "worker:0 waits")
        start = time.monotonic()
        cluster.kill("ps:0")
        with pytest.raises(BarrierBroken, match="ps:0 was lost"):
            waiting.result()
        assert time.monotonic() - start < TIMEOUT / 10
        # Whatever else is asked of it has the same answer.
        with pytest.raises(BarrierBroken, match="ps:0 was lost"):
            other.missing()
