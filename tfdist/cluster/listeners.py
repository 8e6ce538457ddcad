"""On which ports somebody listens, as a process sees it, which may have a network of its own."""

from __future__ import annotations

from pathlib import Path

_LISTEN = "0A"  # include/net/tcp_states.h


def listening_ports(pid: int) -> set[int]:
    """The TCP ports that have a listener in the network of the process; none if it is gone."""
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text("ascii").splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):  # gone, or a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
