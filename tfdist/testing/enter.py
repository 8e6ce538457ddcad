"""Starts small programs of this package, among them the one that runs a command on a host.

That program is this module. Its arguments are the process that holds the host's namespaces, a
working folder, and a command. It runs as long as the command and ends the same way: with its exit
code, or by its signal.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import lazy_loader

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
_NO_HOST, _NOT_FOUND = 125, 127  # the exit codes of env(1) and of shells

_PATHS = [str(Path(__file__).parents[2]), str(Path(lazy_loader.__file__).parents[1])]
_RUN = (
    "import runpy, sys; sys.path += sys.argv[1:3]; del sys.argv[1:3]; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of tfdist as a program, within milliseconds.

    The module may import the standard library and tfdist: Python starts without `site`.
    """
    return [sys.executable, "-I", "-S", "-c", _RUN, *_PATHS, module, *arguments]


def enter(holder: int, kinds: Sequence[str], folder: str | None = None) -> None:
    """Moves this process, which must have one thread, into namespaces of the process `holder`.

    Args:
        holder: a process id.
        kinds: any of "net", "uts", "pid", "mnt". "pid" takes effect for children of this process.
        folder: the working folder afterwards; None for the path of the current one.

    Raises:
        OSError: the holder has ended, or the kernel refused.
    """
    folder = folder or os.getcwd()
    # All are opened before the first is entered: inside, /proc may not show the holder.
    opened = {kind: os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY) for kind in kinds}
    for kind, namespace in opened.items():
        setns(namespace, _KINDS[kind])
        os.close(namespace)
    os.chdir(folder)


def _main() -> None:
    holder, folder, *command = sys.argv[1:]
    # These signals are for the command, which may handle them; this process waits for it.
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
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command may have left a core file
        if -ended != signal.SIGKILL:
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    os._exit(ended)


def _forget_locale() -> None:
    """Removes LC_CTYPE from the environment if Python added it at its start (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        given = file.read().split(b"\0")
    if not any(variable.startswith(b"LC_CTYPE=") for variable in given):
        os.environ.pop("LC_CTYPE", None)


def _become(command: list[str]) -> NoReturn:
    end_with_parent()
    # Ignored signals would stay ignored after the exec, and Python ignores these.
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
