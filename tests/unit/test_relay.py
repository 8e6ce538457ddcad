"""A relay carries frames in order, as late as told, and loses the same ones for the same seed."""

import socket
import time

import pytest

from tfdist.testing.relay import Direction


@pytest.fixture
def cable():
    """Makes a direction; what is sent into its first end comes out of its last."""
    opened = []

    def make(**settings):
        ends = [end for _ in range(2) for end in socket.socketpair(type=socket.SOCK_SEQPACKET)]
        opened.extend(ends)
        for end in ends:
            end.setblocking(False)
        direction = Direction(ends[1].fileno(), ends[2].fileno(), settings.pop("seed", "seed"))
        direction.set_quality(**{"delay_secs": 0.0, "jitter_secs": 0.0, "loss": 0.0, **settings})
        return ends[0], direction, ends[3]

    yield make
    for end in opened:
        end.close()


def carried(cable, count, until=float("inf")):
    """Which of so many numbered frames have arrived at a moment."""
    near, direction, far = cable
    for number in range(count):
        near.send(b"%d" % number)
        direction.take()
    direction.deliver(until)
    arrived = []
    while True:
        try:
            arrived.append(int(far.recv(16)))
        except BlockingIOError:
            return arrived


def test_all_arrive_in_order_whatever_the_jitter(cable):
    assert carried(cable(delay_secs=0.1, jitter_secs=5.0), 50) == list(range(50))


def test_nothing_arrives_before_its_delay(cable):
    now = time.monotonic()
    assert carried(cable(delay_secs=5.0), 3, until=now + 5.0) == []
    assert carried(cable(delay_secs=5.0), 3, until=time.monotonic() + 5.1) == [0, 1, 2]


def test_the_next_one_due_is_known(cable):
    near, direction, _ = cable(delay_secs=5.0)
    assert direction.next_due == float("inf")
    near.send(b"1")
    now = time.monotonic()
    direction.take()
    assert now + 5.0 <= direction.next_due <= time.monotonic() + 5.0


def test_what_is_lost_follows_from_the_seed(cable):
    first, again, other = (carried(cable(loss=0.5, seed=seed), 100) for seed in "aab")
    assert first == again != other
    assert 20 < len(first) < 80


def test_a_dead_end_loses_what_arrives_there(cable):
    near, direction, far = cable()
    far.close()
    near.send(b"1")
    direction.take()
    direction.deliver(float("inf"))
