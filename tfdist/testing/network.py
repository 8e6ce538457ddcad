"""A network of hosts inside this machine, for tests of what happens between machines.

Each host is a set of Linux namespaces: it has its own network card, name, hosts file and
processes, and shares the file system and its users with this machine. A switch joins the hosts.
Nothing leads out of it and nothing in, so two networks with the same names and addresses do not
meet. No namespace has a name: all are held by processes that end with this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError
from tfdist.testing.host_process import HostProcess
from tfdist.testing.link import CARD, TUN, RelayedLink
from tfdist.testing.program import program
from tfdist.testing.root_folder import RootFolder

BRIDGE = "switch0"
# Of the block for tests of networks (RFC 2544), which no real network has.
_PREFIX = "198.18.0"
_MOST_HOSTS = 250
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LEAVE_SECS = 5.0
_COMMAND_SECS = 10.0


class Network:
    """Some hosts on one switch, as a context manager; leaving it ends all that runs on them.

    Needs root, iproute2 and util-linux. Entering it takes a fraction of a second. Tasks of a
    cluster that live on the hosts have to be ended before it is left.

    Args:
        hosts: their names, which all of them can resolve. A name is also what `hostname` says.
        relayed: those whose link can be given delay, jitter and loss. A process carries all that
            they send and get, which costs time of a CPU.
        seed: of what is random on these links.
        roots: root folders for those that have one of their own, by name.
        shared_bytes: how much the folder that the hosts share can hold, in bytes of memory.

    Attributes:
        hosts: the names.
        shared: path of that folder on each host without a root folder of its own. It begins empty.
        shared_here: the path by which this process sees it while the network is up.

    Raises:
        ConfigError: a name is no host name, or comes twice; or a number is wrong.
        ClusterError: on entering; what is missing on this machine, or what it refused.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        relayed: Sequence[str] = (),
        seed: int = 0,
        roots: Mapping[str, RootFolder] | None = None,
        shared_bytes: int = 64 << 20,
    ) -> None:
        self.hosts = tuple(hosts)
        if not 1 <= len(self.hosts) <= _MOST_HOSTS:
            raise ConfigError("hosts", len(self.hosts), f"1 to {_MOST_HOSTS} of them")
        for name in self.hosts:
            if not _NAME.fullmatch(name) or name == "localhost":
                raise ConfigError("hosts", name, "a host name of a-z, 0-9 and -")
            if self.hosts.count(name) > 1:
                raise ConfigError("hosts", name, "each name once")
        if shared_bytes < 1:
            raise ConfigError("shared_bytes", shared_bytes, "at least 1")
        self._roots = dict(roots or {})
        for field, names in (("relayed", relayed), ("roots", self._roots)):
            for name in names:
                if name not in self.hosts:
                    raise ConfigError(field, name, f"one of {', '.join(self.hosts)}")
        self._relayed, self._seed, self._shared_bytes = frozenset(relayed), seed, shared_bytes
        self._holder: subprocess.Popen[str] | None = None
        self._inits: dict[str, int] = {}
        self._links: dict[str, RelayedLink] = {}
        self._started: list[HostProcess] = []
        self._lock = threading.Lock()  # of `_started`: threads may start commands

    def __enter__(self) -> Network:
        if missing := missing_for_network(relayed=bool(self._relayed)):
            raise ClusterError(f"a network of hosts needs {'; '.join(missing)}")
        try:
            self._start_holder()
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process on the hosts, and with them the network; returns when all are gone."""
        holder, self._holder = self._holder, None
        if holder is None:
            return
        assert holder.stdin is not None
        assert holder.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed before it had read all
            holder.stdin.close()
        try:
            holder.wait(_LEAVE_SECS)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            holder.kill()
            holder.wait()
        holder.stdout.close()
        for link in self._links.values():
            link.close()
        self._links.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        deadline = Deadline(_LEAVE_SECS)
        while self._started:
            self._started.pop().wait(deadline.remaining)

    def address(self, host: str) -> str:
        """The host's IP address."""
        return f"{_PREFIX}.{self._index(host) + 1}"

    def port(self, host: str) -> str:
        """The name of the switch's network device to which the host is plugged."""
        return f"port{self._index(host)}"

    def holder(self, host: str) -> int:
        """The process that holds the host's namespaces, and is process 1 there.

        `nsenter -a -t PID` is a way to look around on the host. When it is killed, so is all that
        `start` has started there, and the host is gone for good.
        """
        self._index(host)
        if self._holder is None:
            raise ClusterError("the network is not up")
        return self._inits[host]

    def start(
        self,
        host: str,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> HostProcess:
        """Starts a command on the host, in a process group of its own; it ends with the network.

        Args:
            host: where.
            command: the program and its arguments.
            cwd: the folder where it starts; that of this process if None, or / on a host that has
                a root folder of its own.
            environment: variables that it gets besides those of this process, or its only ones on
                a host that has a root folder of its own.
            options: of `subprocess.Popen`, such as `stdout`. Its streams are bytes.
        """
        if not command:
            raise ConfigError("command", command, "a program, and its arguments")
        is_own = host in self._roots
        folder = os.fspath(cwd) if cwd is not None else "/" if is_own else os.getcwd()
        words = [str(self.holder(host)), folder, *(os.fspath(word) for word in command)]
        process = HostProcess(
            program("tfdist.testing.enter", *words),
            env={**({} if is_own else os.environ), **(environment or {})},
            start_new_session=True,
            **options,
        )
        with self._lock:
            self._started = [each for each in self._started if each.poll() is None]
            self._started.append(process)
        return process

    def configure(self, host: str | None, *command: str, lines: str = "") -> str:
        """Runs a command such as `ip` in the host's network, or the switch's if it is None.

        Only the network is another one: files and process numbers are those of this process.
        Returns what the command has printed; blocks for 10 s at most.

        Args:
            host: where.
            command: the program and its arguments.
            lines: its standard input.

        Raises:
            ClusterError: it failed; with what it said.
        """
        process = self._switch if host is None else self.holder(host)
        told = f"{'the switch' if host is None else host}: {' '.join(command)}"
        try:
            ended = subprocess.run(
                ["nsenter", f"--net=/proc/{process}/ns/net", *command],
                input=lines,
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{told}: no end after {_COMMAND_SECS:g} s") from None
        if ended.returncode != 0:
            raise ClusterError(f"{told}: {ended.stderr.strip()}")
        return ended.stdout

    def link(self, host: str) -> RelayedLink:
        """The link of a host that is `relayed`, whose quality can be changed."""
        self.holder(host)
        if host not in self._links:
            raise ConfigError("host", host, "among the `relayed` of its Network for this fault")
        return self._links[host]

    @property
    def _switch(self) -> int:
        if self._holder is None:
            raise ClusterError("the network is not up")
        return self._holder.pid

    def _index(self, host: str) -> int:
        if host not in self.hosts:
            raise ConfigError("host", host, f"one of {', '.join(self.hosts)}")
        return self.hosts.index(host)

    def _start_holder(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tfdist-network-"))
        shared = self._folder / "shared"
        shared.mkdir()
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in self.hosts)]
        (self._folder / "hosts").write_text("\n".join(lines) + "\n", encoding="ascii")
        roots = {name: root.as_json() for name, root in self._roots.items()}
        settings = {
            "hosts": {name: roots.get(name) for name in self.hosts},
            "folder": str(self._folder),
            "shared_bytes": self._shared_bytes,
        }
        self._holder = subprocess.Popen(
            program("tfdist.testing.holder"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(json.dumps(settings) + "\n")
        self._holder.stdin.flush()
        if not select.select([self._holder.stdout], [], [], _COMMAND_SECS)[0]:
            raise ClusterError(f"the holder of a network is silent for {_COMMAND_SECS:g} s")
        word = json.loads(self._holder.stdout.readline() or '{"error": "its process failed"}')
        if "error" in word:
            raise ClusterError(f"this machine refused a network of hosts: {word['error']}")
        self._inits = word
        self.shared = shared
        self.shared_here = Path(f"/proc/{self._holder.pid}/root{shared}")

    def _connect(self) -> None:
        self._run_ip(
            None, f"link add {BRIDGE} type bridge", f"link set {BRIDGE} addrgenmode none up"
        )
        for host in self.hosts:
            self._make_link(host)
            # Without an address of IPv6, for which the kernel would ask around by itself.
            port = f"link set {self.port(host)} addrgenmode none"
            self._run_ip(None, port, f"link set {self.port(host)} master {BRIDGE} up")
            self._run_ip(
                host,
                "link set lo up",
                f"link set {CARD} addrgenmode none",
                f"addr add {self.address(host)}/24 dev {CARD}",
                f"link set {CARD} up",
            )

    def _make_link(self, host: str) -> None:
        init, port = self._inits[host], self.port(host)
        if host in self._relayed:
            self._links[host] = RelayedLink((init, self._switch), port, f"{self._seed} {host}")
        else:
            self._run_ip(None, f"link add {port} type veth peer name {CARD} netns {init}")

    def _run_ip(self, host: str | None, *lines: str) -> None:
        self.configure(host, "ip", "-batch", "-", lines="\n".join(lines) + "\n")


def missing_for_network(*, relayed: bool = False) -> list[str]:
    """What this machine lacks for a `Network`, in words; empty if nothing is known to."""
    missing = [] if os.geteuid() == 0 else [f"root, but this is user {os.geteuid()}"]
    for name, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(name) is None:
            missing.append(f"the program {name} (of {package})")
    if relayed and not os.path.exists(TUN):
        missing.append(f"{TUN} (of the kernel), for a link that is relayed")
    return missing
