"""What can go wrong with the links and the shared folder of a test network, on purpose.

A fault is a value: it says what goes wrong and where, can be compared and printed, and `on` makes
it happen. Different faults may overlap. None ends a connection by itself: that is up to the
programs at its ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tfdist.errors import ConfigError
from tfdist.testing.link import CARD, LinkQuality
from tfdist.testing.network import BRIDGE, Network

# Of no card: what is sent there reaches the switch, and nobody takes it.
_NOBODY = "02:00:00:00:00:66"
_SMALLEST_BURST = 4000  # bytes; a queue that cannot hold a frame lets nothing pass
_FILLER = ".filled-by-a-fault"


class NetworkFault(ABC):
    """A fault of a `Network`."""

    @contextlib.contextmanager
    def on(self, network: Network) -> Iterator[None]:
        """Has it for as long as the block runs; it is over at its end, also after an error."""
        self.begin(network)
        try:
            yield
        finally:
            self.end(network)

    @abstractmethod
    def begin(self, network: Network) -> None:
        """Makes it happen; it has when this returns.

        Raises:
            ConfigError: the network has no such host, or not one with which this can be done.
            ClusterError: the machine refused.
        """

    @abstractmethod
    def end(self, network: Network) -> None:
        """Undoes it."""


@dataclass(frozen=True)
class Unplug(NetworkFault):
    """The host is no longer at the switch, and does not know it: what it sends is lost in silence.

    Its card has a carrier and its routes stay, so a connection hangs and ends by a timeout only.
    """

    host: str

    def begin(self, network: Network) -> None:  # noqa: D102
        network.configure(None, "ip", "link", "set", network.port(self.host), "nomaster")

    def end(self, network: Network) -> None:  # noqa: D102
        port = network.port(self.host)
        network.configure(None, "ip", "link", "set", port, "master", BRIDGE)


@dataclass(frozen=True)
class LinkDown(NetworkFault):
    """The host's card is down, and the host knows: whoever connects from there is told at once.

    For the others it is like `Unplug`. A connection that exists waits on both sides. A `Cut` that
    the host has is over after this, for the card has forgotten it.
    """

    host: str

    def begin(self, network: Network) -> None:  # noqa: D102
        network.configure(self.host, "ip", "link", "set", CARD, "down")

    def end(self, network: Network) -> None:  # noqa: D102
        network.configure(self.host, "ip", "link", "set", CARD, "up")


@dataclass(frozen=True)
class OneWayCut(NetworkFault):
    """What `source` sends to `target` is lost in silence; the other way is open.

    TCP waits for answers, so a connection between the two stands still, as with `Cut`. What needs
    none still arrives the other way.
    """

    source: str
    target: str

    def begin(self, network: Network) -> None:  # noqa: D102
        _check_apart(self.source, self.target)
        address = network.address(self.target)
        entry = ["lladdr", _NOBODY, "dev", CARD, "nud", "permanent"]
        network.configure(self.source, "ip", "neigh", "replace", address, *entry)

    def end(self, network: Network) -> None:  # noqa: D102
        entry = ["to", network.address(self.target), "dev", CARD, "nud", "permanent"]
        network.configure(self.source, "ip", "neigh", "flush", *entry)


@dataclass(frozen=True)
class Cut(NetworkFault):
    """Two hosts lose what they send to one another, in silence; each reaches all the others."""

    host: str
    other: str

    def begin(self, network: Network) -> None:  # noqa: D102
        there, back = self._ways()
        there.begin(network)
        try:
            back.begin(network)
        except BaseException:
            there.end(network)
            raise

    def end(self, network: Network) -> None:  # noqa: D102
        for way in self._ways():
            way.end(network)

    def _ways(self) -> tuple[OneWayCut, OneWayCut]:
        return OneWayCut(self.host, self.other), OneWayCut(self.other, self.host)


class _Worse(NetworkFault):
    """The link of a host is not as good as it was, in the attributes that `_changes` names."""

    host: str

    def begin(self, network: Network) -> None:
        link = network.link(self.host)
        link.set_quality(replace(link.quality, **self._changes()))

    def end(self, network: Network) -> None:
        link, best = network.link(self.host), LinkQuality()
        undone = {name: getattr(best, name) for name in self._changes()}
        link.set_quality(replace(link.quality, **undone))

    @abstractmethod
    def _changes(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Delay(_Worse):
    """All that the host sends and gets is so many seconds under way: twice that for an answer.

    The host has to be among the `relayed` of its Network, as for `Loss`.

    Attributes:
        host: which one.
        secs: each way.
        jitter_secs: up to how much longer it takes, at random.
    """

    host: str
    secs: float
    jitter_secs: float = 0.0

    def _changes(self) -> dict[str, Any]:
        return {"delay_secs": self.secs, "jitter_secs": self.jitter_secs}


@dataclass(frozen=True)
class Loss(_Worse):
    """A part of what the host sends and gets is lost, at random, from 0 to 1.

    TCP sends it again, so a connection gets slow, and for longer than one expects: 5 % are a lot.
    """

    host: str
    part: float

    def _changes(self) -> dict[str, Any]:
        return {"loss": self.part}


@dataclass(frozen=True)
class Bandwidth(NetworkFault):
    """Only so many bytes pass the host's link in a second, each way."""

    host: str
    bytes_per_sec: int

    def begin(self, network: Network) -> None:  # noqa: D102
        if self.bytes_per_sec < 1:
            raise ConfigError("bytes_per_sec", self.bytes_per_sec, "at least 1")
        burst = max(_SMALLEST_BURST, self.bytes_per_sec // 100)
        rate = f"tbf rate {8 * self.bytes_per_sec}bit burst {burst} latency 400ms".split()
        out, back = self._ends(network)
        self._change(network, out, "add", *rate)
        try:
            self._change(network, back, "add", *rate)
        except BaseException:
            self._change(network, out, "del")
            raise

    def end(self, network: Network) -> None:  # noqa: D102
        for end in self._ends(network):
            self._change(network, end, "del")

    def _ends(self, network: Network) -> tuple[tuple[str | None, str], ...]:
        """Whose device sends what the host sends, and whose what it gets."""
        return (self.host, CARD), (None, network.port(self.host))

    def _change(self, network: Network, end: tuple[str | None, str], verb: str, *rate: str) -> None:
        where, device = end
        network.configure(where, "tc", "qdisc", verb, "dev", device, "root", *rate)


@dataclass(frozen=True)
class DiskFull(NetworkFault):
    """The folder that the hosts share has no room: who writes there gets ENOSPC.

    A file that is deleted meanwhile makes room again, as on a real disk.
    """

    def begin(self, network: Network) -> None:  # noqa: D102
        step = 1 << 20
        with open(network.shared_here / _FILLER, "xb") as file:
            size = 0
            while step:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2

    def end(self, network: Network) -> None:  # noqa: D102
        (network.shared_here / _FILLER).unlink()


def _check_apart(host: str, other: str) -> None:
    if host == other:
        raise ConfigError("hosts", (host, other), "two different ones")
