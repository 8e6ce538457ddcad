"""For tests of clusters: a pytest plugin, and networks of hosts inside one machine.

The names below are loaded when they are first used: a process of a network needs no pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfdist.testing.host_process import HostProcess
    from tfdist.testing.network import Network
    from tfdist.testing.placement import cluster_on, host_names
    from tfdist.testing.polling import poll_until

__all__ = ["HostProcess", "Network", "cluster_on", "host_names", "poll_until"]

_HOMES = {
    "HostProcess": "tfdist.testing.host_process",
    "Network": "tfdist.testing.network",
    "cluster_on": "tfdist.testing.placement",
    "host_names": "tfdist.testing.placement",
    "poll_until": "tfdist.testing.polling",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
