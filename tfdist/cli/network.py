"""Who may reach the ports of a run, told before there are any."""

from __future__ import annotations

import sys

from tfdist.cluster.isolation import is_reachable, isolate
from tfdist.errors import ClusterError


def isolate_or_tell(wanted: bool) -> None:
    """Isolates this process if that is `wanted`; one line on standard error if ports stay open."""
    if wanted:
        try:
            isolate()
        except ClusterError as error:
            _tell(f"--isolate was refused, so TensorFlow's ports are open: {error}")
    elif is_reachable():
        _tell("TensorFlow's ports are open to the network; --isolate or a firewall closes them")


def _tell(line: str) -> None:
    print(f"tfdist: {line}", file=sys.stderr)
