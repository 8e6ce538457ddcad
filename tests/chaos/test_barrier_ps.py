"""The ps that keeps the barrier is lost, or cut off from the trainers."""

import contextlib
import dataclasses
import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tfdist import Barrier, BarrierTimeout, BrokenBarrierError
from tfdist.cluster.ports import is_listening
from tfdist.testing import poll_until

TIMEOUT = 60.0
SOON = 0.5  # how long after its timeout a wait may end


class Link(threading.Thread):
    """A network between trainers and a ps. A cut stops all data and closes no connection."""

    def __init__(self, address):
        super().__init__(name="link", daemon=True)
        host, _, port = address.rpartition(":")
        self._far = (host, int(port))
        self._entrance = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._entrance.getsockname()[1]}"
        self._other = {}
        self._whole = threading.Event()
        self._closed = False
        self.mend()
        self.start()

    def cut(self):
        self._whole.clear()

    def mend(self):
        self._whole.set()

    def run(self):
        with selectors.DefaultSelector() as ready:
            ready.register(self._entrance, selectors.EVENT_READ)
            while not self._closed:
                for key, _ in ready.select(0.05):
                    self._whole.wait(TIMEOUT)
                    if key.fileobj is self._entrance:
                        self._connect(ready)
                    else:
                        self._forward(ready, key.fileobj)

    def _connect(self, ready):
        near, _ = self._entrance.accept()
        far = socket.create_connection(self._far)
        self._other |= {near: far, far: near}
        for side in (near, far):
            ready.register(side, selectors.EVENT_READ)

    def _forward(self, ready, side):
        if side not in self._other:
            return  # closed by the event just before
        with contextlib.suppress(ConnectionError):  # a reset ends a connection as its end does
            if data := side.recv(65536):
                self._other[side].sendall(data)
                return
        for each in (side, self._other[side]):
            ready.unregister(each)
            del self._other[each]
            each.close()

    def close(self):
        self.mend()
        self._closed = True
        self.join(TIMEOUT)
        for side in (self._entrance, *self._other):
            side.close()


@pytest.fixture(params=["queue", "counter"])
def kind(request):
    return request.param


def test_waiting_trainers_learn_long_before_their_timeout_that_the_ps_was_killed(
    make_cluster, no_leaks, kind
):
    cluster = make_cluster(1, 2, backend="processes")
    one, other = (Barrier(task, "end", kind=kind) for task in cluster.trainers)
    with one, other, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.wait, TIMEOUT)
        poll_until(lambda: other.n_waiting == 1, "worker:0 waits")
        start = time.monotonic()
        cluster.kill("ps:0")
        with pytest.raises(BrokenBarrierError, match="ps:0 was lost"):
            waiting.result()
        assert time.monotonic() - start < TIMEOUT / 10
        # Every other call that asks the ps raises the same.
        with pytest.raises(BrokenBarrierError, match="ps:0 was lost"):
            other.missing()
        for timeout in (0, 0.5, 3.0):
            assert ends_late(one, timeout, BrokenBarrierError) < SOON


def test_a_new_barrier_works_after_the_ps_was_restarted_and_an_older_one_after_its_reset(
    no_leaks, make_cluster, kind
):
    cluster = make_cluster(1, 1, backend="processes")
    [task] = cluster.trainers
    before, idle = (Barrier(task, name, kind=kind) for name in ("before", "idle"))
    with before, idle:
        assert before.wait(TIMEOUT) == 0
        cluster.kill("ps:0")
        cluster.restart("ps:0")
        with Barrier(task, "after", kind=kind) as after:  # no run has failed before it
            assert after.wait(TIMEOUT) == 0
        for barrier in (before, idle):
            with pytest.raises(BrokenBarrierError, match="ps:0"):
                barrier.wait(TIMEOUT)
            barrier.reset()
            assert barrier.wait(TIMEOUT) == 0


def ends_late(barrier, timeout, error):
    """How many seconds after its timeout a wait ends with that error."""
    start = time.monotonic()
    with pytest.raises(error, match="ps:0"):
        barrier.wait(timeout)
    return time.monotonic() - start - timeout


@pytest.fixture
def cut_off(make_cluster, kind):
    """A barrier of two, and their link to the ps."""
    cluster = make_cluster(1, 2, backend="processes")
    address = cluster.trainers[0].cluster_spec["ps"][0]
    host, _, port = address.rpartition(":")
    # Without this the link's own connection could be refused.
    poll_until(lambda: is_listening(host, int(port)), "the ps serves", timeout=60)
    link = Link(address)
    tasks = [
        dataclasses.replace(task, cluster_spec={**task.cluster_spec, "ps": [link.address]})
        for task in cluster.trainers
    ]
    one, other = (Barrier(task, "end", kind=kind) for task in tasks)
    yield one, other, link
    link.mend()
    one.close()
    other.close()
    link.close()


def test_a_trainer_cut_off_from_the_ps_times_out_and_continues_afterwards(cut_off):
    one, other, link = cut_off
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ends_late, one, 2.0, BarrierTimeout)
        poll_until(lambda: other.n_waiting == 1, "worker:0 waits")
        link.cut()
        assert waiting.result(TIMEOUT) < SOON
        # One trainer continues its wait; the arrival of the other gets no answer.
        for timeout in (0, 0.5, 1.2, 3.0):
            late = pool.submit(ends_late, one, timeout, BarrierTimeout)
            assert ends_late(other, timeout, BarrierTimeout) < SOON
            assert late.result(TIMEOUT) < SOON
        link.mend()
        for _ in range(3):
            passing = pool.submit(one.wait, TIMEOUT)
            assert other.wait(TIMEOUT) == 1
            assert passing.result(TIMEOUT) == 0
    assert one.generation == 4
