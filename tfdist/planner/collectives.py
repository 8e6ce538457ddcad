"""Collectives: the bytes and seconds that devices need to sum or to exchange a tensor.

Letters in the formulas: n devices, N bytes, B bandwidth in bytes per second, l latency in seconds.
A link works in both directions at a time, so the seconds are those of one direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tfdist.errors import checked_integer, checked_number
from tfdist.planner.quantity import Quantity, plain
from tfdist.planner.transformer import LARGEST

RING = "Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69(2)"
TREE = "Thakur, Rabenseifner and Gropp 2005, Int. J. High Perf. Comput. Appl. 19(1)"


@dataclass(frozen=True)
class Link:
    """What connects a device to the others.

    Attributes:
        bandwidth: bytes per second in each direction.
        latency: seconds until the first byte of a message arrives.

    Raises:
        ConfigError: a number is out of range.
    """

    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        rule = "must be a positive number of bytes per second"
        checked_number("link.bandwidth", self.bandwidth, lambda n: 0 < n < 1e30, rule)
        rule = "must be a number of seconds, at least 0"
        checked_number("link.latency", self.latency, lambda n: 0 <= n < 1e9, rule)


@dataclass(frozen=True)
class Collective:
    """The cost of one collective.

    Attributes:
        sent: bytes that a device sends; in a broadcast, the root.
        received: bytes that a device receives; in a broadcast, each but the root.
        seconds: from the start, when all are ready, to the end on all devices.
    """

    sent: Quantity
    received: Quantity
    seconds: Quantity


def all_reduce(nbytes: float, devices: int, link: Link) -> Collective:
    """Sums a tensor of `nbytes` that each device has; each ends with the sum. A ring.

    Raises:
        ConfigError: a number is out of range; so do all collectives.
    """
    return _in_parts(nbytes, devices, link, passes=2, source=RING)


def reduce_scatter(nbytes: float, devices: int, link: Link) -> Collective:
    """Sums a tensor of `nbytes` that each device has; each ends with one part of the sum."""
    return _in_parts(nbytes, devices, link, passes=1, source=RING)


def all_gather(nbytes: float, devices: int, link: Link) -> Collective:
    """Joins the parts that the devices have to a tensor of `nbytes`, on each device."""
    return _in_parts(nbytes, devices, link, passes=1, source=RING)


def all_to_all(nbytes: float, devices: int, link: Link) -> Collective:
    """Each device has `nbytes`, and sends an equal part of them to each device."""
    return _in_parts(nbytes, devices, link, passes=1, source=TREE)


def broadcast(nbytes: float, devices: int, link: Link) -> Collective:
    """Copies a tensor of `nbytes` to all devices along a binomial tree.

    In each round every device that has the tensor sends it to one that has not.
    """
    n, size = _checked(nbytes, devices)
    rounds = (n - 1).bit_length()
    values = {"n": n, "N": nbytes}
    sent = Quantity("sent", plain(rounds * size), "bytes", "ceil(log2 n) N", values, TREE)
    received = Quantity("received", nbytes if n > 1 else 0, "bytes", "N", values, TREE)
    return Collective(sent, received, _seconds(sent, rounds, "ceil(log2 n)", link))


def hierarchical_all_reduce(
    nbytes: float, machines: int, per_machine: int, inside: Link, between: Link
) -> Collective:
    """Sums a tensor of `nbytes` over the devices of several machines.

    The devices of a machine reduce-scatter. Each device then all-reduces its part with the devices
    of the same index on the other machines. At last the devices of a machine all-gather.

    Args:
        nbytes: of the tensor on each device.
        machines: their number.
        per_machine: devices of a machine.
        inside: link of a device to those of its machine.
        between: link of one device to other machines.
    """
    checked_integer("machines", machines, 1, LARGEST)
    checked_integer("per_machine", per_machine, 1, LARGEST)
    within = all_reduce(nbytes, per_machine, inside)  # a reduce-scatter and an all-gather
    across = all_reduce(plain(Fraction(nbytes) / per_machine), machines, between)

    def total(name: str, unit: str) -> Quantity:
        both = ((within, "inside machines"), (across, "between machines"))
        parts = (getattr(each, name) for each, _ in both)
        named = [
            Quantity(place, part.value, unit, part.formula, part.values, part.source)
            for part, (_, place) in zip(parts, both, strict=True)
        ]
        return Quantity.sum_of(name, unit, named)

    return Collective(
        total("sent", "bytes"), total("received", "bytes"), total("seconds", "seconds")
    )


def _in_parts(nbytes: float, devices: int, link: Link, passes: int, source: str) -> Collective:
    """A collective of `passes` (n - 1) rounds; in each a device sends one of n parts."""
    n, size = _checked(nbytes, devices)
    rounds = "(n - 1)" if passes == 1 else f"{passes} (n - 1)"
    value = plain(passes * (n - 1) * size / n)
    values = {"n": n, "N": nbytes}
    sent, received = (
        Quantity(name, value, "bytes", f"{rounds} N / n", values, source)
        for name in ("sent", "received")
    )
    return Collective(sent, received, _seconds(sent, passes * (n - 1), rounds, link))


def _seconds(sent: Quantity, rounds: int, formula: str, link: Link) -> Quantity:
    """The time of as many rounds one after another, which together send so much."""
    value = sent.value / link.bandwidth + rounds * link.latency
    values = {**sent.values, "B": link.bandwidth, "l": link.latency}
    formula = f"{sent.formula} / B + {formula} l"
    return Quantity("seconds", value, "seconds", formula, values, sent.source)


def _checked(nbytes: Any, devices: Any) -> tuple[int, Fraction]:
    rule = "must be a number of bytes, at least 0"
    checked_number("nbytes", nbytes, lambda n: 0 <= n < 1e30, rule)
    return checked_integer("devices", devices, 1, LARGEST), Fraction(nbytes)
