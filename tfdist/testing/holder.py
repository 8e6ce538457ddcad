"""The process that holds the namespaces of a test network, and a process for each host of it.

Namespaces without a name last as long as a process in them. This one is in those of the switch,
and forks an init for each host: process 1 of the host, with which the kernel ends all others of
it. The inits end with this process, and this one ends with its standard input, so that nothing is
left when the test process ends, by whatever way.

It is the program of `Network`. The first line that it reads is JSON: `hosts` (the root folder of
each by name, or null for that of this machine), `folder` (a path with the file `hosts` and the
folder `shared` in it), and `shared_bytes`. It prints one line of JSON: the process of each host, by
name, or `error`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from typing import Any, NoReturn

from tfdist.cluster.kernel_calls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    end_with_parent,
    mount,
    setns,
    unmount,
    unshare,
)
from tfdist.testing.root_folder import change_root

_MADE = "made"


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    settings = json.loads(sys.stdin.readline())
    folder, inits = settings["folder"], dict[str, int]()
    shared = f"{folder}/shared"
    try:
        unshare(CLONE_NEWNET | CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        size = f"size={settings['shared_bytes']},mode=1777"
        mount("tfdist-shared", shared, "tmpfs", options=size)
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        for name, root in settings["hosts"].items():
            inits[name] = _start_host(name, root, folder, own)
        print(json.dumps(inits), flush=True)
    except OSError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    # Until the test process closes its end, or is gone.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while os.read(0, 4096):
        pass
    for init in inits.values():
        os.kill(init, signal.SIGKILL)
    for init in inits.values():
        os.waitpid(init, 0)
    # Where this process has been killed instead, `Network` removes the folder.
    with contextlib.suppress(OSError):
        unmount(shared)
    shutil.rmtree(folder, ignore_errors=True)


def _start_host(name: str, root: Any, folder: str, own: int) -> int:
    """Forks the host's init, and returns its process id once the host is made."""
    # Back to where the first child was forked from: a second new namespace could not be had else.
    setns(own, CLONE_NEWPID)
    unshare(CLONE_NEWPID)
    read_end, write_end = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(read_end)
        _be_init(name, root, folder, write_end)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as pipe:
        word = pipe.read()
    if word != _MADE:
        os.waitpid(init, 0)
        raise OSError(f"host {name}: {word or 'its first process was ended'}")
    return init


def _be_init(name: str, root: Any, folder: str, ready: int) -> NoReturn:
    try:
        end_with_parent()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS)
        socket.sethostname(name)
        if root is None:
            mount(f"{folder}/hosts", "/etc/hosts", flags=MS_BIND)
            mount("proc", "/proc", "proc")
        else:
            new = f"{folder}/root"
            os.makedirs(new, exist_ok=True)
            change_root(root, new, f"{folder}/shared", f"{folder}/hosts")
        word = _MADE
    except OSError as error:
        word = str(error)
    try:
        os.write(ready, word.encode())
    except BrokenPipeError:  # our parent ended before it was our business
        word = ""
    if word != _MADE:
        os._exit(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(ready)
    while True:  # whoever is left alone on the host becomes its child
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    _main()
