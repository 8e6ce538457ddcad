"""What the doctor asks this machine; tests pass their own answers."""

from __future__ import annotations

import glob
import importlib.metadata
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tfdist.cluster.ports import is_taken
from tfdist.doctor.identities import ReadIdentities, read_identities

_NVIDIA_SMI_SECS = 2.0


def resolve(host: str) -> list[str]:
    """The IP addresses of `host`, in the system's order; blocks as long as its resolver does.

    Raises:
        OSError: the name does not resolve.
        UnicodeError: it cannot be a name.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def own_addresses() -> list[str]:
    """The IP addresses of this machine's active interfaces, without IPv6 scopes."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return [
        address.address.partition("%")[0]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    ]


def gpus() -> list[str]:
    """The GPUs that this process may open; may run nvidia-smi, for at most 2 s."""
    if devices := sorted(glob.glob("/dev/nvidia[0-9]*")):
        return devices
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_SECS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return []  # without a driver it fails, and TensorFlow finds no GPU either
    return [line.split(" (")[0] for line in listed.stdout.splitlines() if line.startswith("GPU ")]


def installed(package: str) -> str | None:
    """The installed version of a package, from its metadata; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Machine:
    """The functions by which the doctor asks.

    Attributes:
        resolve: returns the IP addresses of a host; OSError if it has none.
        own_addresses: returns the IP addresses of this machine.
        is_taken: returns whether another program listens on a port of this machine.
        gpus: returns the names of this machine's GPUs.
        installed: returns the version of a package, or None.
        read_identities: returns the runs of ps.
    """

    resolve: Callable[[str], list[str]] = resolve
    own_addresses: Callable[[], list[str]] = own_addresses
    is_taken: Callable[[int], bool] = is_taken
    gpus: Callable[[], list[str]] = gpus
    installed: Callable[[str], str | None] = installed
    read_identities: ReadIdentities = read_identities
