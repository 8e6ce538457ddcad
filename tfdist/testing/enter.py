"""Entering the namespaces of a host: as a function, and as the program that runs a command there.

The program's arguments are the process that holds the namespaces, the command's folder, and the
command. It records as long as that and ends as that does, with its exit code or by its signal.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from tfdist.cluster.kernel_calls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    end_with_parent,
    setns,
)

_KINDS = {"net": CLONE_NEWNET, "uts": CLONE_NEWUTS, "pid": CLONE_NEWPID, "mnt": CLONE_NEWNS}
_ASKS_TO_END = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_NO_HOST, _NOT_FOUND = 125, 127  # as env(1) and the shells say it


def enter(holder: int, kinds: Sequence[str], folder: str | None = None) -> None:
    """Puts this process, which has one thread, into namespaces of the process `holder`.

    Args:
        holder: its process id.
        kinds: of "net", "uts", "pid", "mnt". "pid" is for the children of this process.
        folder: where it is then; None for where it is now, by the path.

    Raises:
        OSError: the holder is gone, or the kernel refused.
    """
    folder = folder or os.getcwd()
    # All are opened before the first is entered: from inside the others may not be seen.
    opened = {kind: os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY) for kind in kinds}
    for kind, namespace in opened.items():
        setns(namespace, _KINDS[kind])
        os.close(namespace)
    os.chdir(folder)


def _main() -> None:
    holder, folder, *command = sys.argv[1:]
    # Whoever asks the process group to end means the command, which may want to say good-bye.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKS_TO_END)
    _forget_locale()
    try:
        enter(int(holder), list(_KINDS), folder)
    except OSError as error:
        print(f"cannot enter the host: {error}", file=sys.stderr, flush=True)
        os._exit(_NO_HOST)
    child = os.fork()
    if child == 0:
        _become(command)
    for number in _ASKS_TO_END:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKS_TO_END)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command may have left one
        if -ended != signal.SIGKILL:
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    os._exit(ended)


def _forget_locale() -> None:
    """Takes out of the environment what Python itself has put there at its start (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        given = file.read().split(b"\0")
    if not any(variable.startswith(b"LC_CTYPE=") for variable in given):
        os.environ.pop("LC_CTYPE", None)


def _become(command: list[str]) -> NoReturn:
    end_with_parent()
    # What Python has set for itself would last through the exec.
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKS_TO_END)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(_NOT_FOUND)


if __name__ == "__main__":
    _main()
