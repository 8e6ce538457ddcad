"""The lock on the ps, of which TensorFlow lets go when somebody else stops waiting for it."""

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import pytest
import tensorflow as tf

from tests.ps_session import ps_session
from tfdist import Barrier, BarrierTimeout, local_cluster
from tfdist.ps.session import PS_DEVICE
from tfdist.testing import poll_until

TIMEOUT = 20.0


@pytest.fixture(scope="module")
def trainers():
    with local_cluster(1, 2, backend="threads") as cluster:
        yield cluster.trainers


class SlowChange:
    """A change of a barrier's state that has read it, and writes it when it is told to."""

    def __init__(self, barrier):
        self.graph = barrier._participant.connection.graph
        with self.graph.graph.as_default(), tf.compat.v1.device(PS_DEVICE):
            entered, go = (tf.queue.FIFOQueue(1, [tf.bool], [[]]) for _ in range(2))
            with self.graph._section() as section:
                before = self.graph._read(self.graph._vector, tf.int64)
                with tf.control_dependencies([before]):
                    told = entered.enqueue(True)
                with tf.control_dependencies([told]):
                    section.stored.append(go.dequeue().op)
                section.store(self.graph._vector, before)
            self.run_all = section.done
            self.num_entered, self.let_go = entered.size(), go.enqueue(True)
            section = self.graph._exclusive
            self.lock_only = section.unlock(section.lock(), [])
        self.session = ps_session(barrier._participant._address, self.graph.graph)

    def stop_waiting_for_the_lock(self):
        soon = tf.compat.v1.RunOptions(timeout_in_ms=300)
        with pytest.raises(tf.errors.DeadlineExceededError):
            self.session.run(self.lock_only, options=soon)


@pytest.mark.parametrize("kind", ["queue", "counter"])
def test_a_release_is_not_undone_by_a_change_that_had_read_the_state_before(trainers, kind):
    one, other = (Barrier(task, f"lock {kind}", kind=kind) for task in trainers)
    with one, other, ThreadPoolExecutor(3) as pool:
        slow = SlowChange(one)
        changing = pool.submit(slow.session.run, slow.run_all)
        poll_until(lambda: slow.session.run(slow.num_entered), "it has read the state")
        slow.stop_waiting_for_the_lock()
        waits = [pool.submit(barrier.wait, TIMEOUT) for barrier in (one, other)]
        wait_for(waits, 1.0)  # nobody may pass yet; if they do, it shows below
        assert other.missing() == ("worker:0", "worker:1")
        slow.session.run(slow.let_go)
        changing.result(TIMEOUT)
        assert [wait.result(TIMEOUT) for wait in waits] == [0, 1]
        assert one.generation == 2
        with pytest.raises(BarrierTimeout):
            one.wait(0.5)
        slow.session.close()
