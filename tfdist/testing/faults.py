"""Faults of a test network and of the tasks of a job, and which of them this machine supports.

A fault is a value: it names what goes wrong and where, can be compared and printed, and `on` makes
it happen. Different faults may overlap. No fault of the network ends a connection by itself; the
programs at both ends decide that.
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tfdist.errors import ClusterError, ConfigError, checked_integer
from tfdist.testing.link import CARD, LinkQuality
from tfdist.testing.network import BRIDGE, Network

# An address of no card: a frame for it reaches the switch, and no host takes it.
_NO_CARD = "02:00:00:00:00:66"
_SMALLEST_BURST = 4000  # bytes; a queue that is shorter than a frame passes nothing
_FILLER = ".filled-by-a-fault"


class NetworkFault(ABC):
    """A fault of a `Network`."""

    @contextlib.contextmanager
    def on(self, network: Network) -> Iterator[None]:
        """The fault lasts while the block runs, and ends with it, also after an error."""
        self.begin(network)
        try:
            yield
        finally:
            self.end(network)

    @abstractmethod
    def begin(self, network: Network) -> None:
        """Starts the fault; it is in force when this returns.

        Raises:
            ConfigError: the network has no such host, or the host does not support the fault.
            ClusterError: the machine refused.
        """

    @abstractmethod
    def end(self, network: Network) -> None:
        """Ends the fault."""


@dataclass(frozen=True)
class Unplug(NetworkFault):
    """The host is unplugged from the switch and does not notice: its packets are lost silently.

    Its card keeps the carrier and the routes, so only a timeout ends a connection.
    """

    host: str

    def begin(self, network: Network) -> None:  # noqa: D102
        network.configure(None, "ip", "link", "set", network.port(self.host), "nomaster")

    def end(self, network: Network) -> None:  # noqa: D102
        port = network.port(self.host)
        network.configure(None, "ip", "link", "set", port, "master", BRIDGE)


@dataclass(frozen=True)
class LinkDown(NetworkFault):
    """The host's card is down, and the host knows: a new connection from there fails immediately.

    For the other hosts it is like `Unplug`. An existing connection waits at both ends. A `Cut` of
    this host does not survive it, because the card loses its static neighbors.
    """

    host: str

    def begin(self, network: Network) -> None:  # noqa: D102
        network.configure(self.host, "ip", "link", "set", CARD, "down")

    def end(self, network: Network) -> None:  # noqa: D102
        network.configure(self.host, "ip", "link", "set", CARD, "up")


@dataclass(frozen=True)
class OneWayCut(NetworkFault):
    """Packets from `source` to `target` are lost silently; the opposite direction works.

    TCP waits for acknowledgements, so a connection between the two blocks, as with `Cut`. Datagrams
    in the opposite direction arrive.
    """

    source: str
    target: str

    def begin(self, network: Network) -> None:  # noqa: D102
        _check_apart(self.source, self.target)
        address = network.address(self.target)
        entry = ["lladdr", _NO_CARD, "dev", CARD, "nud", "permanent"]
        network.configure(self.source, "ip", "neigh", "replace", address, *entry)

    def end(self, network: Network) -> None:  # noqa: D102
        entry = ["to", network.address(self.target), "dev", CARD, "nud", "permanent"]
        network.configure(self.source, "ip", "neigh", "flush", *entry)


@dataclass(frozen=True)
class Cut(NetworkFault):
    """Packets between two hosts are lost silently; each of them still reaches all others."""

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
    """A host's link has a lower quality, in the attributes that `_changes` names."""

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
    """All traffic of the host is delayed in each direction, so a round trip takes twice as long.

    The host must be in `relayed` of its Network, as for `Loss`.

    Attributes:
        host: the name of the host.
        secs: the delay in each direction.
        jitter_secs: the longest random addition to that.
    """

    host: str
    secs: float
    jitter_secs: float = 0.0

    def _changes(self) -> dict[str, Any]:
        return {"delay_secs": self.secs, "jitter_secs": self.jitter_secs}


@dataclass(frozen=True)
class Loss(_Worse):
    """A random fraction, from 0 to 1, of the host's traffic is lost in each direction.

    TCP sends lost packets again, which slows a connection down: 5 % is a lot.
    """

    host: str
    part: float

    def _changes(self) -> dict[str, Any]:
        return {"loss": self.part}


@dataclass(frozen=True)
class Bandwidth(NetworkFault):
    """The host's link passes at most this many bytes per second in each direction."""

    host: str
    bytes_per_sec: int

    def begin(self, network: Network) -> None:  # noqa: D102
        bytes_per_sec = checked_integer("bytes_per_sec", self.bytes_per_sec, 1, 2**60)
        burst = max(_SMALLEST_BURST, bytes_per_sec // 100)
        rate = f"tbf rate {8 * bytes_per_sec}bit burst {burst} latency 400ms".split()
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
        """The devices that send what leaves the host, and what arrives there."""
        return (self.host, CARD), (None, network.port(self.host))

    def _change(self, network: Network, end: tuple[str | None, str], verb: str, *rate: str) -> None:
        where, device = end
        network.configure(where, "tc", "qdisc", verb, "dev", device, "root", *rate)


@dataclass(frozen=True)
class DiskFull(NetworkFault):
    """The folder that the hosts share is full: a write there fails with ENOSPC.

    Deleting a file meanwhile makes room again, as on a real disk.
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
        raise ConfigError("hosts", (host, other), "must be two different hosts")


class Tasks(Protocol):
    """What runs tasks and names them, such as a `tfdist.LocalCluster`."""

    def kill(self, name: str) -> None:
        """Ends the task with SIGKILL."""

    def restart(self, name: str) -> None:
        """Starts a killed task again."""

    def pause(self, name: str) -> None:
        """Stops the task with SIGSTOP."""

    def resume(self, name: str) -> None:
        """Continues the task with SIGCONT."""


class TaskFault(ABC):
    """A fault of one task of a running job."""

    @contextlib.contextmanager
    def on(self, tasks: Tasks) -> Iterator[None]:
        """The fault lasts while the block runs, and ends with it, also after an error."""
        self.begin(tasks)
        try:
            yield
        finally:
            self.end(tasks)

    @abstractmethod
    def begin(self, tasks: Tasks) -> None:
        """Starts the fault; it is in force when this returns."""

    @abstractmethod
    def end(self, tasks: Tasks) -> None:
        """Undoes what can be undone."""


@dataclass(frozen=True)
class Kill(TaskFault):
    """The task is gone for good; its machine refuses connections to its port."""

    task: str

    def begin(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.kill(self.task)

    def end(self, tasks: Tasks) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class Restart(TaskFault):
    """The task is killed; at the end it is started again, with nothing in memory."""

    task: str

    def begin(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.kill(self.task)

    def end(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.restart(self.task)


@dataclass(frozen=True)
class Pause(TaskFault):
    """The task is stopped and continues at the end; connections to it stay open meanwhile."""

    task: str

    def begin(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.pause(self.task)

    def end(self, tasks: Tasks) -> None:  # noqa: D102
        tasks.resume(self.task)


_PLAIN: tuple[type[NetworkFault], ...] = (Unplug, LinkDown, Cut, OneWayCut, DiskFull)
_RELAYED: tuple[type[NetworkFault], ...] = (Delay, Loss)


def capabilities() -> dict[type[NetworkFault | TaskFault], str]:
    """For each fault, why this machine does not support it; an empty text if it does.

    Tries them out, on two small networks, in a fraction of a second.
    """
    found: dict[type[NetworkFault | TaskFault], str] = dict.fromkeys((Kill, Restart, Pause), "")
    try:
        with Network(["any"]) as network:
            found |= dict.fromkeys(_PLAIN, "")
            found[Bandwidth] = _bandwidth_error(network)
    except ClusterError as error:
        found |= dict.fromkeys((*_PLAIN, Bandwidth), str(error))
    try:
        with Network(["any"], relayed=["any"]):
            found |= dict.fromkeys(_RELAYED, "")
    except ClusterError as error:
        found |= dict.fromkeys(_RELAYED, str(error))
    return found


def _bandwidth_error(network: Network) -> str:
    try:
        with Bandwidth("any", 1_000_000).on(network):
            return ""
    except ClusterError as error:
        return str(error)
