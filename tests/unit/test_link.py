"""A relayed link keeps frames in order, delays them, and loses the same ones for the same seed."""

import socket
import time

import pytest

from tfdist.testing.link import Direction, LinkQuality


@pytest.fixture
def cable():
    """Makes a direction; a frame sent to the first socket arrives at the last one."""
    opened = []

    def make(**settings):
        ends = [end for _ in range(2) for end in socket.socketpair(type=socket.SOCK_SEQPACKET)]
        opened.extend(ends)
        for end in ends:
            end.setblocking(False)
        direction = Direction(ends[1].fileno(), ends[2].fileno(), settings.pop("seed", "seed"))
        direction.quality = LinkQuality(**settings)
        return ends[0], direction, ends[3]

    yield make
    for end in opened:
        end.close()


def carried(cable, count, until=float("inf")):
    """The numbers of the frames, of `count` sent, that have arrived by `until`."""
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


def test_frames_arrive_in_order_despite_jitter(cable):
    assert carried(cable(delay_secs=0.1, jitter_secs=5.0), 50) == list(range(50))


def test_no_frame_arrives_before_its_delay(cable):
    now = time.monotonic()
    assert carried(cable(delay_secs=5.0), 3, until=now + 5.0) == []
    assert carried(cable(delay_secs=5.0), 3, until=time.monotonic() + 5.1) == [0, 1, 2]


def test_next_due_is_the_arrival_of_the_next_frame(cable):
    near, direction, _ = cable(delay_secs=5.0)
    assert direction.next_due == float("inf")
    near.send(b"1")
    now = time.monotonic()
    direction.take()
    assert now + 5.0 <= direction.next_due <= time.monotonic() + 5.0


def test_the_seed_determines_which_frames_are_lost(cable):
    first, again, other = (carried(cable(loss=0.5, seed=seed), 100) for seed in "aab")
    assert first == again != other
    assert 20 < len(first) < 80


def test_a_frame_for_a_closed_device_is_lost(cable):
    near, direction, far = cable()
    far.close()
    near.send(b"1")
    direction.take()
    direction.deliver(float("inf"))
