"""The bytes and seconds of collectives are those of the messages, one by one."""

import math
from collections import Counter

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    Link,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    hierarchical_all_reduce,
    reduce_scatter,
)

LINK = Link(bandwidth=1000.0, latency=0.25)
PART = 8  # bytes that the smallest message has


class Wires:
    """Counts what devices send; a round ends when its slowest message has arrived."""

    def __init__(self) -> None:
        self.sent, self.received, self.seconds = Counter(), Counter(), 0.0

    def round(self, messages, link=LINK):
        for source, target, nbytes in messages:
            self.sent[source] += nbytes
            self.received[target] += nbytes
        self.seconds += max(link.latency + nbytes / link.bandwidth for *_, nbytes in messages)


def ring_reduce_scatter(wires, tensors, ring, link=LINK, part=PART):
    """Afterwards device ring[i] has the sum of part i + 1."""
    n = len(ring)
    for turn in range(n - 1):
        moves = [(i, (i + 1) % n, (i - turn) % n) for i in range(n)]
        wires.round([(ring[i], ring[j], part) for i, j, _ in moves], link)
        values = [tensors[ring[i]][k] for i, _, k in moves]
        for (_, j, k), value in zip(moves, values, strict=True):
            tensors[ring[j]][k] += value


def ring_all_gather(wires, tensors, ring, link=LINK, part=PART):
    """Before it device ring[i] has the sum of part i + 1."""
    n = len(ring)
    for turn in range(n - 1):
        moves = [(i, (i + 1) % n, (i + 1 - turn) % n) for i in range(n)]
        wires.round([(ring[i], ring[j], part) for i, j, _ in moves], link)
        values = [tensors[ring[i]][k] for i, _, k in moves]
        for (_, j, k), value in zip(moves, values, strict=True):
            tensors[ring[j]][k] = value


def tensors_of(n, parts=None):
    return [[100 * device + k for k in range(parts or n)] for device in range(n)]


def check(collective, wires, devices):
    for device in devices:
        assert collective.sent.value == wires.sent[device]
        assert collective.received.value == wires.received[device]
    assert collective.seconds.value == pytest.approx(wires.seconds)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_a_ring_sums_with_so_many_bytes(n):
    wires, tensors = Wires(), tensors_of(n)
    expected = [sum(column) for column in zip(*tensors, strict=True)]
    ring_reduce_scatter(wires, tensors, range(n))
    assert [tensors[i][(i + 1) % n] for i in range(n)] == expected[1:] + expected[:1]
    check(reduce_scatter(n * PART, n, LINK), wires, range(n))
    ring_all_gather(wires, tensors, range(n))
    assert tensors == [expected] * n
    check(all_reduce(n * PART, n, LINK), wires, range(n))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_ring_gathers_with_so_many_bytes(n):
    wires = Wires()
    ring_all_gather(wires, tensors_of(n), range(n))
    check(all_gather(n * PART, n, LINK), wires, range(n))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_all_to_all_sends_a_part_to_each_other_device(n):
    wires = Wires()
    for turn in range(1, n):
        wires.round([(i, (i + turn) % n, PART) for i in range(n)])
    check(all_to_all(n * PART, n, LINK), wires, range(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9])
def test_a_broadcast_doubles_those_that_have_the_tensor(n):
    wires, have = Wires(), 1
    while have < n:
        wires.round([(i, i + have, PART) for i in range(min(have, n - have))])
        have *= 2
    cost = broadcast(PART, n, LINK)
    assert cost.sent.value == wires.sent[0] == max(wires.sent.values())
    assert {wires.received[device] for device in range(1, n)} == {cost.received.value}
    assert cost.seconds.value == pytest.approx(wires.seconds)


def at_the_same_time(rings, run):
    """Each ring on wires of its own: what each device sends, and the seconds of the slowest."""
    sent, slowest = Counter(), 0.0
    for ring in rings:
        wires = Wires()
        run(wires, ring)
        sent += wires.sent
        slowest = max(slowest, wires.seconds)
    return sent, slowest


@pytest.mark.parametrize(("machines", "per_machine"), [(2, 2), (3, 4), (1, 4), (4, 1)])
def test_a_hierarchy_sums_with_so_many_bytes_on_each_link(machines, per_machine):
    inside, between = Link(4000.0, 0.125), Link(1000.0, 0.25)
    n, block = machines * per_machine, machines * PART
    within = [range(m * per_machine, (m + 1) * per_machine) for m in range(machines)]
    across = [range(index, n, per_machine) for index in range(per_machine)]
    tensors = tensors_of(n, per_machine)  # of blocks, each of `machines` parts
    expected = [sum(column) for column in zip(*tensors, strict=True)]

    def sum_of_owned_blocks(wires, ring):
        parts = {device: [0] * machines for device in ring}
        own = (ring[0] + 1) % per_machine  # the block that the reduce-scatter left there
        for device in ring:
            parts[device][0] = tensors[device][own]  # a block has its value in one of its parts
        ring_reduce_scatter(wires, parts, ring, between)
        ring_all_gather(wires, parts, ring, between)
        for device in ring:
            tensors[device][own] = sum(parts[device])

    first, first_seconds = at_the_same_time(
        within, lambda wires, ring: ring_reduce_scatter(wires, tensors, ring, inside, block)
    )
    second, second_seconds = at_the_same_time(across, sum_of_owned_blocks)
    third, third_seconds = at_the_same_time(
        within, lambda wires, ring: ring_all_gather(wires, tensors, ring, inside, block)
    )
    assert tensors == [expected] * n
    cost = hierarchical_all_reduce(n * PART, machines, per_machine, inside, between)
    for device in range(n):
        assert cost.sent.part("inside machines") == first[device] + third[device]
        assert cost.sent.part("between machines") == second[device]
    assert cost.seconds.value == pytest.approx(first_seconds + second_seconds + third_seconds)


@pytest.mark.parametrize("machines", [1, 2, 5])
@pytest.mark.parametrize("per_machine", [1, 3, 8])
def test_a_hierarchy_sends_as_many_bytes_as_a_ring_of_all(machines, per_machine):
    n = machines * per_machine
    hierarchy = hierarchical_all_reduce(10**6, machines, per_machine, LINK, LINK)
    assert hierarchy.sent.value == pytest.approx(all_reduce(10**6, n, LINK).sent.value)


def test_the_worked_example():
    # 1 GB, 8 devices, 100 GB/s, 10 us: 1.75 GB in 14 rounds.
    cost = all_reduce(10**9, 8, Link(100e9, 10e-6))
    assert cost.sent.value == 1_750_000_000
    assert cost.seconds.value == pytest.approx(0.0175 + 14 * 10e-6)
    assert cost.seconds.formula == "2 (n - 1) N / n / B + 2 (n - 1) l"
    assert cost.seconds.values == {"n": 8, "N": 10**9, "B": 100e9, "l": 10e-6}


@pytest.mark.parametrize(
    "collective", [all_reduce, reduce_scatter, all_gather, all_to_all, broadcast]
)
def test_one_device_sends_nothing(collective):
    cost = collective(10**9, 1, LINK)
    assert (cost.sent.value, cost.received.value, cost.seconds.value) == (0, 0, 0)


def test_bytes_are_whole_numbers_where_they_are_exact():
    assert isinstance(all_reduce(8, 4, LINK).sent.value, int)
    assert all_reduce(10, 4, LINK).sent.value == 15
    assert all_reduce(1, 3, LINK).sent.value == pytest.approx(4 / 3)


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "1", True, None])
def test_wrong_bytes_are_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        all_reduce(wrong, 2, LINK)
    assert caught.value.field == "nbytes"


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "2", True, 10**12])
def test_wrong_devices_are_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        broadcast(8, wrong, LINK)
    assert caught.value.field == "devices"
    with pytest.raises(ConfigError) as caught:
        hierarchical_all_reduce(8, 2, wrong, LINK, LINK)
    assert caught.value.field == "per_machine"


@pytest.mark.parametrize(
    ("bandwidth", "latency", "field"),
    [
        (0, 0, "link.bandwidth"),
        (math.nan, 0, "link.bandwidth"),
        (math.inf, 0, "link.bandwidth"),
        (1, -1, "link.latency"),
        (1, math.nan, "link.latency"),
    ],
)
def test_a_wrong_link_is_refused(bandwidth, latency, field):
    with pytest.raises(ConfigError) as caught:
        Link(bandwidth, latency)
    assert caught.value.field == field
