"""Free ports that stay reserved until a server has bound them.

A port that is picked and released can be taken by another program before the server binds it. Here
a socket stays bound, without listening, and shares the port (SO_REUSEPORT) with a later server of
the same user, as TensorFlow's servers are under `TF_GRPC_REUSE_PORT=1`.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import portpicker

from tfdist.errors import ClusterError

_MOST_TRIES = 100
_LISTEN = "0A"  # include/net/tcp_states.h


class HeldPorts:
    """Reserves `count` free ports of this machine until it is closed.

    Attributes:
        ports: the port numbers.
    """

    def __init__(self, count: int) -> None:
        self._sockets = []
        try:
            for _ in range(count):
                self._sockets.append(_bound_socket())
        except BaseException:
            self.close()
            raise
        self.ports = [held.getsockname()[1] for held in self._sockets]

    def close(self) -> None:
        """Releases the ports."""
        for held in self._sockets:
            held.close()

    def __enter__(self) -> HeldPorts:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _bound_socket() -> socket.socket:
    for _ in range(_MOST_TRIES):
        try:
            port = portpicker.pick_unused_port()
        except portpicker.NoFreePortFoundError:
            raise ClusterError(
                "found no free port for a task; all are in use, or this process may not open more "
                "files (ulimit -n)"
            ) from None
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.bind(("", port))
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue  # another program took the port first
        # After the bind: with the flag set before it, two launchers could bind the same port.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return held
    raise ClusterError(f"found no free port in {_MOST_TRIES} tries")


def is_taken(port: int) -> bool:
    """True if another program listens at `port`, or has bound it without sharing it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return is_listening("127.0.0.1", port)


def is_listening(host: str, port: int, timeout: float = 1.0) -> bool:
    """True if a process accepts connections there; blocks for `timeout` seconds at most."""
    try:
        with socket.create_connection((host, port), timeout):
            return True
    except OSError:
        return False


def listening_ports(pid: int) -> set[int]:
    """The TCP ports with a listener in the network of process `pid`; none if it has ended."""
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text("ascii").splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):  # process ended, or kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
