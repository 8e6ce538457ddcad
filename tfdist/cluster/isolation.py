"""A private network namespace for this process: a TensorFlow server executes what any peer sends.

TensorFlow's servers listen on every interface and have no option against it (TensorFlow 2.21). In
a network namespace of its own a process has one interface, loopback, which no other process shares.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct

import psutil

from tfdist.cluster.kernel_calls import CLONE_NEWNET, CLONE_NEWUSER, setns, unshare
from tfdist.errors import ClusterError

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
_IFF_UP = 1
_IFREQ = "16sh22x"  # a name and its flags, in a struct ifreq of 40 bytes


def is_reachable() -> bool:
    """True if this network namespace has an interface, other than loopback, that is up."""
    return any(
        interface.isup and "loopback" not in interface.flags.split(",")
        for interface in psutil.net_if_stats().values()
    )


def isolate() -> None:
    """Moves this process, and all that it starts from now on, into a private network namespace.

    No process outside reaches the ports that they open, and they reach no process outside. This
    cannot be undone. It needs a privileged process, or a kernel that allows user namespaces to
    all users. User and files stay the same.

    Raises:
        ClusterError: the kernel does not allow it, or this process has several threads, of which
            only one would move. Nothing has changed then.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise ClusterError(
            f"this process has {threads} threads; only a process with one thread can be isolated"
        )
    # First without a user namespace, in which a privileged process would lose rights.
    for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET):
        reason = _rehearse(flags)
        if not reason:
            _enter(flags)
            return
    raise ClusterError(
        f"the kernel refused a network namespace: {reason}. An administrator can allow it: sysctl "
        "user.max_user_namespaces, user.max_net_namespaces, kernel.unprivileged_userns_clone; "
        "AppArmor; the seccomp profile of a container (docs/run.md#security)"
    )


def enter_network(pid: int) -> None:
    """Moves this process into the network namespace of process `pid`, unless it is there already.

    Raises:
        ClusterError: process `pid` has ended, the kernel does not allow it, or this process has
            several threads, of which only one would move.
    """
    namespaces: list[int] = []
    try:
        if _is_own(pid, "net"):
            return
        # All are opened before the first is entered, from which /proc may not show them. The
        # user namespace comes first: it gives the right to enter the network namespace.
        for kind in ("user", "net"):
            if not _is_own(pid, kind):
                namespaces.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
        for namespace in namespaces:
            setns(namespace)
    except OSError as error:
        raise ClusterError(f"cannot enter the network of process {pid}: {error}") from error
    finally:
        for namespace in namespaces:
            os.close(namespace)


def _is_own(pid: int, kind: str) -> bool:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino


def _rehearse(flags: int) -> str:
    """Tries `_enter` in a child; returns why it fails, or "".

    The kernel may refuse half way, where the process could not go back.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        reason = b"the process that tried it failed"
        try:
            _enter(flags)
            reason = b""
        except OSError as error:
            reason = str(error).encode()
        finally:
            os.write(write_end, reason)
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as pipe:
        reason_text = pipe.read()
    with contextlib.suppress(ChildProcessError):  # already reaped where SIGCHLD is ignored
        os.waitpid(child, 0)
    return reason_text


def _enter(flags: int) -> None:
    """Enters new namespaces; raises OSError if the kernel refuses, possibly half way."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(flags)
    if flags & CLONE_NEWUSER:
        _write("setgroups", "deny")  # the kernel requires it before a group is mapped
        _write("uid_map", f"{uid} {uid} 1")
        _write("gid_map", f"{gid} {gid} 1")
    # Until the next exec this process has all rights over its new namespaces.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack(_IFREQ, b"lo", 0))
        name, now = struct.unpack(_IFREQ, request)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_IFREQ, name, now | _IFF_UP))


def _write(file: str, text: str) -> None:
    with open(f"/proc/self/{file}", "w", encoding="ascii") as proc:
        proc.write(text)
