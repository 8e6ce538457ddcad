"""Linux system calls for which Python 3.10 has no function.

Each raises OSError with the name of the call. This module needs only the standard library, because
programs that start without site import it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal

CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000  # linux/sched.h
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 0x20, 0x1000, 0x4000, 0x40000  # mount.h
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Moves this process into new namespaces; CLONE_NEWPID applies to its next children."""
    _check(_libc.unshare(flags), "unshare")


def setns(namespace: int, flags: int = 0) -> None:
    """Moves this process into the namespace of an open descriptor; `flags` name its kind.

    Entering a mount namespace makes its root the current folder.
    """
    _check(_libc.setns(namespace, flags), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mounts `source` at `target`, or changes the mount at `target`, according to `flags`."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None)
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None)
    _check(result, f"mount at {target}")


def unmount(target: str) -> None:
    """Detaches the mount at `target`; processes that still use it keep it."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount of {target}")


def pivot_root(new: str) -> None:
    """Makes the mount point `new` the root folder, and unmounts the old root."""
    os.chdir(new)
    # Both in one place: the old root is stacked on the new one, and then unmounted.
    _check(_libc.pivot_root(b".", b"."), f"pivot_root to {new}")
    unmount(".")
    os.chdir("/")


def raise_descriptor_limit() -> None:
    """Raises the soft limit of open descriptors to the hard one: a ps has one for each connection.

    TensorFlow aborts when it cannot open another one.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def to_high_number(descriptor: int) -> int:
    """Moves a descriptor to a number that no later file of a script gets, and returns that.

    A script may close descriptors that it does not know. The files that it then opens have low
    numbers, and whatever still writes to such a number would write into them.
    """
    high = min(512, os.sysconf("SC_OPEN_MAX") // 2)
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, high)
    os.close(descriptor)
    return moved


def end_with_parent() -> None:
    """Makes the kernel send this process SIGKILL when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), "prctl(PR_SET_PDEATHSIG)")


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
