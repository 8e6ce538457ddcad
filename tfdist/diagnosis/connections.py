"""The TCP connections of any process of this machine, and whether what it sends is acknowledged.

A machine that is cut off from another one does not know it: what it sends is sent again, each time
after twice as long, for a quarter of an hour (`tcp_retries2` of Linux). Until then nothing fails.
A process that is stopped, or busy, is told apart by that: its kernel acknowledges, as long as there
is room for what the process has not read. Whoever takes a long message bit by bit, over a slow
link, say, is told from one that takes nothing by how much the kernel of the sender still holds.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

LONG = 2**14
"""Bytes. What the tasks of a job ask each other while they wait is shorter."""

_ESTABLISHED = "01"
_LOOKS = 10  # between two of them what is sent anew may hide what was taken


@dataclass(frozen=True)
class Connection:
    """One end of a TCP connection.

    Attributes:
        local: address and port of this end, such as "10.0.0.1:2222".
        remote: of the other one.
        unacknowledged: bytes that the kernel holds, sent or not, for the other end.
        resent: how often the kernel has sent something again, and still nobody acknowledges it.
    """

    local: str
    remote: str
    unacknowledged: int
    resent: int


def connections_of(pid: int) -> tuple[Connection, ...]:
    """Those that are established; none if the process is gone, or another user's."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        inodes = set(_socket_inodes(pid))
        return tuple(_read(pid, "tcp", inodes)) + tuple(_read(pid, "tcp6", inodes))
    return ()


def takers_of(pid: int, secs: float) -> frozenset[str]:
    """The remote ends that take a part of a long message in this time; blocks that long."""
    takers = set()
    before = {(end.local, end.remote): end.unacknowledged for end in connections_of(pid)}
    for _ in range(_LOOKS):
        time.sleep(secs / _LOOKS)
        held = {(end.local, end.remote): end.unacknowledged for end in connections_of(pid)}
        takers |= {ends[1] for ends, now in held.items() if now < before.get(ends, 0) >= LONG}
        before = held
    return frozenset(takers)


def _socket_inodes(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with suppress(FileNotFoundError):  # closed in the meantime
            link = os.readlink(f"{folder}/{number}")
            if link.startswith("socket:["):
                yield link[len("socket:[") : -1]


def _read(pid: int, family: str, inodes: set[str]) -> Iterator[Connection]:
    # See proc_pid_net(5). The file has all connections of the network namespace.
    with open(f"/proc/{pid}/net/{family}", encoding="ascii") as lines:
        next(lines)
        for line in lines:
            _, local, remote, state, queues, _, resent, _, _, inode, *_ = line.split()
            if state == _ESTABLISHED and inode in inodes:
                unacknowledged, _, _ = queues.partition(":")
                yield Connection(
                    _endpoint(local), _endpoint(remote), int(unacknowledged, 16), int(resent, 16)
                )


def _endpoint(text: str) -> str:
    """From "0100007F:08AE": words of four bytes, each as a number of this machine."""
    digits, _, port = text.partition(":")
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    host = str(mapped or address)
    return f"[{host}]:{int(port, 16)}" if ":" in host else f"{host}:{int(port, 16)}"
