"""The processes that hold the namespaces of a test network, and the root folders of its hosts.

A namespace without a name lasts as long as a process in it. `Network` runs this module as a
program: the holder. The holder is in the switch's namespaces and forks an init for each host, which
is process 1 there: when it ends, the kernel ends all other processes of the host. The inits end
with the holder, and the holder ends when its standard input is closed. So nothing is left when the
test process ends, even by SIGKILL.

The holder reads one line, `Settings`, and prints one line, `Answer`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NoReturn

from tfdist.cluster.kernel_calls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_BIND,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    end_with_parent,
    mount,
    pivot_root,
    setns,
    unmount,
    unshare,
)
from tfdist.errors import checked_flag

_MADE = "made"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}


@dataclass(frozen=True)
class Bind:
    """A folder or file of this machine that appears on a host at `target`.

    Attributes:
        source: an absolute path, or the name of a subfolder of the folder that all hosts share.
        target: an absolute path.
        read_only: whether the host may only read it.
    """

    source: str
    target: str
    read_only: bool = False

    def __post_init__(self) -> None:
        checked_flag("read_only", self.read_only)


@dataclass(frozen=True)
class RootFolder:
    """A root folder of a host, like that of a container whose image is empty.

    It contains these, `/proc`, `/sys`, and what programs need of `/dev` and `/etc`. It shows no
    other part of this machine's file system.

    Attributes:
        binds: in any order.
        tmpfs: absolute paths; the host gets an empty folder at each.
    """

    binds: Sequence[Bind] = ()
    tmpfs: Sequence[str] = ()


@dataclass(frozen=True)
class Settings:
    """What `Network` asks the holder for.

    Attributes:
        hosts: the root folder of each host; None for this machine's.
        folder: an absolute path; it contains the file `hosts` and the folder `shared`.
        shared_bytes: the size of the folder that all hosts share.
    """

    hosts: Mapping[str, RootFolder | None]
    folder: str
    shared_bytes: int

    def line(self) -> str:
        """The settings as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: str) -> Settings:
        """The settings of a line that `line` returned."""
        values = json.loads(line)
        hosts = {
            name: root and RootFolder([Bind(**bind) for bind in root["binds"]], root["tmpfs"])
            for name, root in values["hosts"].items()
        }
        return cls(hosts, values["folder"], values["shared_bytes"])


@dataclass(frozen=True)
class Answer:
    """What the holder has made.

    Attributes:
        inits: the process id of each host's init.
        error: why not all could be made; None if they were.
    """

    inits: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None

    def line(self) -> str:
        """The answer as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, line: str) -> Answer:
        """The answer of a line that `line` returned; an error if the line is empty."""
        return cls(**json.loads(line)) if line else cls(error="the holder's process failed")


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    settings = Settings.parse(sys.stdin.readline())
    shared = f"{settings.folder}/shared"
    inits: dict[str, int] = {}
    try:
        unshare(CLONE_NEWNET | CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        size = f"size={settings.shared_bytes},mode=1777"
        mount("tfdist-shared", shared, "tmpfs", options=size)
        own = os.open("/proc/self/ns/pid", os.O_RDONLY)
        for name, root in settings.hosts.items():
            inits[name] = _start_host(name, root, settings.folder, own)
        print(Answer(inits).line(), flush=True)
    except OSError as error:
        print(Answer(error=str(error)).line(), flush=True)
    # Blocks until the test process closes its end or ends itself.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while os.read(0, 4096):
        pass
    for init in inits.values():
        os.kill(init, signal.SIGKILL)
    for init in inits.values():
        os.waitpid(init, 0)
    # If this process was killed instead, `Network` removes the folder.
    with contextlib.suppress(OSError):
        unmount(shared)
    shutil.rmtree(settings.folder, ignore_errors=True)


def _start_host(name: str, root: RootFolder | None, folder: str, own: int) -> int:
    """Forks the host's init and returns its process id once the host is complete."""
    # The kernel refuses a second unshare(CLONE_NEWPID) until the first is undone.
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
        raise OSError(f"host {name}: {word or 'its first process was killed'}")
    return init


def _be_init(name: str, root: RootFolder | None, folder: str, ready: int) -> NoReturn:
    try:
        end_with_parent()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS)
        socket.sethostname(name)
        if root is None:
            mount(f"{folder}/hosts", "/etc/hosts", flags=MS_BIND)
            mount("proc", "/proc", "proc")
        else:
            _change_root(root, folder)
        word = _MADE
    except OSError as error:
        word = str(error)
    try:
        os.write(ready, word.encode())
    except BrokenPipeError:  # the holder has ended
        word = ""
    if word != _MADE:
        os._exit(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(ready)
    while True:  # reaps the orphans of the host, which become children of its process 1
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _change_root(root: RootFolder, folder: str) -> None:
    """Builds a host's root folder and moves this process and its mount namespace into it.

    `/proc` and `/sys` show the namespaces of this process, so it must be in the host's already.

    Raises:
        OSError: a source does not exist, or the kernel refused.
    """
    new = f"{folder}/root"
    os.makedirs(new, exist_ok=True)
    mount("tfdist-root", new, "tmpfs", options="mode=755")
    mounts: list[tuple[str, Bind | None]] = [
        *((path, None) for path in root.tmpfs),
        *((bind.target, bind) for bind in root.binds),
    ]
    # Outer folders first, or they would cover the inner ones.
    for target, bind in sorted(mounts, key=lambda each: each[0].rstrip("/").count("/")):
        if bind is None:
            os.makedirs(new + target, exist_ok=True)
            mount("tmpfs", new + target, "tmpfs", options="mode=1777")
        else:
            source = os.path.join(f"{folder}/shared", bind.source)
            if not os.path.isabs(bind.source):
                os.makedirs(source, exist_ok=True)
            _bind(source, new + target, bind.read_only)
    _make_usual_files(new, f"{folder}/hosts")
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


if __name__ == "__main__":
    _main()
