"""A root folder of a host's own, like that of a container whose image is empty.

It has what was asked for, `/proc`, `/sys`, and what programs need of `/dev` and `/etc`. Nothing of
this machine's file system is in it but what is bound there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tfdist.cluster.kernel_calls import (
    MS_BIND,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    pivot_root,
)

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}


@dataclass(frozen=True)
class Bind:
    """A folder or file of this machine that a host has at `target`.

    Attributes:
        source: an absolute path, or the name of a folder in the one that the hosts share.
        target: an absolute path.
        read_only: whether the host may only read it.
    """

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class RootFolder:
    """What a host has instead of this machine's file system.

    Attributes:
        binds: in any order.
        tmpfs: absolute paths at which it has an empty folder.
    """

    binds: Sequence[Bind] = ()
    tmpfs: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """As plain values, for `change_root`."""
        return asdict(self)


def change_root(settings: Mapping[str, Any], new: str, shared: str, hosts_file: str) -> None:
    """Makes the root folder of a host, and puts this process and its namespace into it.

    This process is in a mount namespace of its own, and in the namespaces of which `/proc` and
    `/sys` are to tell.

    Args:
        settings: of `RootFolder.as_json`.
        new: an empty folder, at which it is made.
        shared: the folder in which relative sources of binds are.
        hosts_file: becomes /etc/hosts.

    Raises:
        OSError: a source is not there, or the kernel refused.
    """
    mount("tfdist-root", new, "tmpfs", options="mode=755")
    mounts: list[tuple[str, dict[str, Any] | None]] = [
        *((path, None) for path in settings["tmpfs"]),
        *((bind["target"], bind) for bind in settings["binds"]),
    ]
    # What lies inside of another one comes after it.
    for target, bind in sorted(mounts, key=lambda each: each[0].rstrip("/").count("/")):
        if bind is None:
            os.makedirs(new + target, exist_ok=True)
            mount("tmpfs", new + target, "tmpfs", options="mode=1777")
        else:
            source = os.path.join(shared, bind["source"])
            if not os.path.isabs(bind["source"]):
                os.makedirs(source, exist_ok=True)
            _bind(source, new + target, bind["read_only"])
    _make_usual_files(new, hosts_file)
    pivot_root(new)


def _bind(source: str, target: str, read_only: bool) -> None:
    if not os.path.isdir(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            open(target, "xb").close()
    else:
        os.makedirs(target, exist_ok=True)
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def _make_usual_files(new: str, hosts_file: str) -> None:
    for name in ("proc", "sys", "dev", "etc", "tmp"):
        os.makedirs(f"{new}/{name}", exist_ok=True)
    mount("proc", f"{new}/proc", "proc")
    mount("sysfs", f"{new}/sys", "sysfs", MS_RDONLY)
    mount("tmpfs", f"{new}/dev", "tmpfs", options="mode=755")
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"{new}/dev/{name}", read_only=False)
    for name, target in _LINKS.items():
        os.symlink(target, f"{new}/dev/{name}")
    os.mkdir(f"{new}/dev/shm")
    mount("tmpfs", f"{new}/dev/shm", "tmpfs", options="mode=1777")
    _bind(hosts_file, f"{new}/etc/hosts", read_only=True)
