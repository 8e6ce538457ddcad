"""TensorFlow releases the lock on the ps if another run stops waiting for it; no change is lost."""

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import pytest
import tensorflow as tf

from tfdist import Barrier, BarrierTimeout, local_cluster
from tfdist.barrier.operations import Crossing
from tfdist.barrier.state import resource_names
from tfdist.ps.session import DirectSession
from tfdist.testing import poll_until

TIMEOUT = 20.0


@pytest.fixture(scope="module")
def trainers():
    with local_cluster(1, 2, backend="threads") as cluster:
        yield cluster.trainers


class SlowChange:
    """A change of a barrier's state that pauses between reading and writing it."""

    def __init__(self, barrier):
        names = resource_names(barrier.name)
        self.graph = Crossing(2, 0, has_action=False, names=names, incarnation=4)
        with self.graph.building():
            entered, go = (tf.queue.FIFOQueue(1, [tf.bool], [[]]) for _ in range(2))
            with self.graph.section() as section:
                before = self.graph.read(self.graph.resources.state, tf.int64)
                with tf.control_dependencies([before]):
                    reported = entered.enqueue(True)
                with tf.control_dependencies([reported]):
                    section.stored.append(go.dequeue().op)
                section.store(self.graph.resources.state, before)
            self.run_all = section.done
            self.num_entered, self.proceed = entered.size(), go.enqueue(True)
            section = self.graph.exclusive
            self.lock_only = section.unlock(section.lock(), [])
        self.session = DirectSession(barrier._participant._address, self.graph.graph, timeout=0)

    def stop_waiting_for_the_lock(self):
        with pytest.raises(tf.errors.DeadlineExceededError):
            self.session.run(self.lock_only, timeout=0.3)


@pytest.mark.parametrize("kind", ["queue", "counter"])
def test_a_change_that_had_read_the_state_before_does_not_undo_a_release(trainers, kind):
    one, other = (Barrier(task, f"lock {kind}", kind=kind) for task in trainers)
    with one, other, ThreadPoolExecutor(3) as pool:
        slow = SlowChange(one)
        changing = pool.submit(slow.session.run, slow.run_all)
        poll_until(lambda: slow.session.run(slow.num_entered), "it has read the state")
        slow.stop_waiting_for_the_lock()
        waits = [pool.submit(barrier.wait, TIMEOUT) for barrier in (one, other)]
        wait_for(waits, 1.0)  # no trainer may pass yet; if one does, the assertion below fails
        assert other.missing() == ("worker:0", "worker:1")
        slow.session.run(slow.proceed)
        changing.result(TIMEOUT)
        assert [wait.result(TIMEOUT) for wait in waits] == [0, 1]
        assert one.generation == 2
        with pytest.raises(BarrierTimeout):
            one.wait(0.5)
        slow.session.close()
