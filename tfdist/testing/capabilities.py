"""Which faults this machine can have, found out by trying."""

from __future__ import annotations

from tfdist.errors import ClusterError
from tfdist.testing.faults import (
    Bandwidth,
    Cut,
    Delay,
    DiskFull,
    LinkDown,
    Loss,
    NetworkFault,
    OneWayCut,
    Unplug,
)
from tfdist.testing.network import Network
from tfdist.testing.task_faults import Kill, Pause, Restart, TaskFault

_PLAIN: tuple[type[NetworkFault], ...] = (Unplug, LinkDown, Cut, OneWayCut, DiskFull)
_RELAYED: tuple[type[NetworkFault], ...] = (Delay, Loss)


def capabilities() -> dict[type[NetworkFault | TaskFault], str]:
    """For each fault why this machine cannot have it, or an empty text if it can.

    Takes a fraction of a second: it makes two small networks.
    """
    found: dict[type[NetworkFault | TaskFault], str] = dict.fromkeys((Kill, Restart, Pause), "")
    try:
        with _network() as network:
            found |= dict.fromkeys(_PLAIN, "")
            found[Bandwidth] = _refusal_of_limit(network)
    except ClusterError as error:
        found |= dict.fromkeys((*_PLAIN, Bandwidth), str(error))
    try:
        with _network(relayed=True):
            found |= dict.fromkeys(_RELAYED, "")
    except ClusterError as error:
        found |= dict.fromkeys(_RELAYED, str(error))
    return found


def _network(*, relayed: bool = False) -> Network:
    return Network(["any"], relayed=["any"] if relayed else [])


def _refusal_of_limit(network: Network) -> str:
    try:
        with Bandwidth("any", 1_000_000).on(network):
            return ""
    except ClusterError as error:
        return str(error)
