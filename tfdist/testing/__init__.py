"""For tests of clusters: a pytest plugin, and networks of hosts inside one machine.

The names below are loaded when they are first used: a process of a network needs no pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfdist.testing.capabilities import capabilities
    from tfdist.testing.compose_nodes import ComposeNodes, compose_nodes
    from tfdist.testing.host_process import HostProcess
    from tfdist.testing.incident import Incident, random_incident
    from tfdist.testing.network import Network
    from tfdist.testing.placement import cluster_on, host_names
    from tfdist.testing.polling import poll_until
    from tfdist.testing.root_folder import Bind, RootFolder

__all__ = [
    "Bind",
    "ComposeNodes",
    "HostProcess",
    "Incident",
    "Network",
    "RootFolder",
    "capabilities",
    "cluster_on",
    "compose_nodes",
    "host_names",
    "poll_until",
    "random_incident",
]

_HOMES = {
    "Bind": "tfdist.testing.root_folder",
    "ComposeNodes": "tfdist.testing.compose_nodes",
    "HostProcess": "tfdist.testing.host_process",
    "Incident": "tfdist.testing.incident",
    "Network": "tfdist.testing.network",
    "RootFolder": "tfdist.testing.root_folder",
    "capabilities": "tfdist.testing.capabilities",
    "cluster_on": "tfdist.testing.placement",
    "compose_nodes": "tfdist.testing.compose_nodes",
    "host_names": "tfdist.testing.placement",
    "poll_until": "tfdist.testing.polling",
    "random_incident": "tfdist.testing.incident",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
