"""Runs a part of a benchmark in a network of its own, and counts the bytes in it.

Loopback carries nothing but that part there, so its counter is the traffic of all connections, with
the headers of TCP and gRPC. TensorFlow passes tensors between the devices of one process without
the network.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfdist.cluster.isolation import isolate
from tfdist.errors import ClusterError

_ACKNOWLEDGED_SECS = 0.05


def run_alone(module: str, plan: dict[str, Any], limit_secs: float) -> Any:
    """What `run` of this module returns, called in another process as run(plan, limit, reason).

    The reason says why other processes may use the network; it is "" if they may not. All is plain
    data.

    Raises:
        ClusterError: the process failed, or it took longer than `limit_secs`.
    """
    command = [sys.executable, "-m", "benchmarks._private_network", module, json.dumps(plan)]
    try:
        done = subprocess.run(
            [*command, str(limit_secs)],
            timeout=limit_secs,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"took longer than {limit_secs:g} s") from error
    if done.returncode:
        raise ClusterError((done.stderr.strip() or "no reason").splitlines()[-1])
    return json.loads(done.stdout)


def bytes_of(step: Callable[[], Any], count: int) -> float:
    """Bytes that this network's loopback sends in a step, the mean of `count` steps."""
    before = _sent()
    for _ in range(count):
        step()
    time.sleep(_ACKNOWLEDGED_SECS)  # the last gradients may still be acknowledged
    return (_sent() - before) / count


def _sent() -> int:
    for line in Path("/proc/self/net/dev").read_text("ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise OSError("no loopback in /proc/self/net/dev")


def _main() -> None:
    reason = ""
    try:
        isolate()  # before this process has threads, and to import NumPy starts some
    except ClusterError as error:
        reason = str(error)
    _, module, plan, limit_secs = sys.argv
    found = importlib.import_module(module).run(json.loads(plan), float(limit_secs), reason)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
