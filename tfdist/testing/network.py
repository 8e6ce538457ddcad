"""A network of hosts inside this machine, for tests of what happens between machines.

Each host is a set of Linux namespaces: it has its own network card, name, hosts file and
processes, and shares the file system and the users of this machine. A switch joins the hosts. The
network is closed: two networks with the same names and addresses do not interfere. Its namespaces
have no names; processes hold them, and these end with this process.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError, checked_integer, checked_names
from tfdist.testing.enter import program
from tfdist.testing.holder import Answer, RootFolder, Settings
from tfdist.testing.link import CARD, TUN, RelayedLink

BRIDGE = "switch0"
# From the block for benchmarks of networks (RFC 2544), which no real network uses.
_PREFIX = "198.18.0"
_MOST_HOSTS = 250
_MOST_BYTES = 2**62
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PROBES = 2**20  # for a hardware address, one a second
_LEAVE_SECS = 5.0
_COMMAND_SECS = 10.0


class HostProcess(subprocess.Popen[bytes]):
    """A `subprocess.Popen` on a host; its signals reach the command's whole process group.

    `Network.start` creates it. `returncode` is the command's: 127 if there is no such program, 125
    if the host is gone. `pid` is a process of this machine that waits for the command, not the
    command's own number on the host.
    """

    def send_signal(self, sig: int) -> None:
        """Sends the signal to the command and the rest of its process group."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sig)

    def ask_to_end(self) -> None:
        """Sends SIGTERM to the command alone, as docker does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for command in psutil.Process(self.pid).children():
                command.terminate()

    def stop(self) -> None:
        """Sends SIGSTOP: connections stay open, and nothing answers."""
        self.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Sends SIGCONT."""
        self.send_signal(signal.SIGCONT)


class Network:
    """Hosts on one switch, as a context manager; leaving it ends every process on them.

    Needs root, iproute2 and util-linux. Entering takes a fraction of a second. End the tasks of a
    cluster on these hosts before you leave the network.

    Args:
        hosts: their names. Every host resolves all of them; `hostname` prints its own.
        relayed: the hosts whose links can have delay, jitter and loss. A process relays all their
            traffic, which costs CPU time.
        seed: determines what is random on these links.
        roots: the root folders of the hosts that have one of their own.
        shared_bytes: the size of the folder that the hosts share, in bytes of memory.

    Attributes:
        hosts: the names.
        shared: the path of the shared folder, which is empty at first, on each host without a root
            folder of its own.
        shared_here: the path of the shared folder in this process while the network is up.

    Raises:
        ConfigError: a name is not a host name, or is there twice; or a number is wrong.
        ClusterError: on entering: what this machine lacks or refused.
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
        self.hosts, relayed = checked_names("hosts", hosts), checked_names("relayed", relayed)
        if not 1 <= len(self.hosts) <= _MOST_HOSTS:
            raise ConfigError("hosts", len(self.hosts), f"must be 1 to {_MOST_HOSTS} hosts")
        for name in self.hosts:
            if not _NAME.fullmatch(name) or name == "localhost":
                raise ConfigError("hosts", name, "must be a host name of a-z, 0-9 and -")
            if self.hosts.count(name) > 1:
                raise ConfigError("hosts", name, "must contain each name once")
        shared_bytes = checked_integer("shared_bytes", shared_bytes, 1, _MOST_BYTES)
        seed = checked_integer("seed", seed)
        if roots is not None and not isinstance(roots, Mapping):
            raise ConfigError("roots", roots, "must be a RootFolder by host, or None")
        self._roots = dict(roots or {})
        for field, names in (("relayed", relayed), ("roots", self._roots)):
            for name in names:
                if name not in self.hosts:
                    raise ConfigError(field, name, f"must be one of {', '.join(self.hosts)}")
        self._relayed, self._seed, self._shared_bytes = frozenset(relayed), seed, shared_bytes
        self._holder: subprocess.Popen[str] | None = None
        self._inits: Mapping[str, int] = {}
        self._links: dict[str, RelayedLink] = {}
        self._started: list[HostProcess] = []
        self._lock = threading.Lock()  # guards `_started`, because threads may start commands

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
        """Ends every process on the hosts and the network; returns when all are gone."""
        holder, self._holder = self._holder, None
        if holder is None:
            return
        assert holder.stdin is not None
        assert holder.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed before it had read all
            holder.stdin.close()
        try:
            holder.wait(_LEAVE_SECS)
        except subprocess.TimeoutExpired:  # a SIGSTOP from elsewhere
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
        """The name of the switch's network device for the host."""
        return f"port{self._index(host)}"

    def holder(self, host: str) -> int:
        """The process that holds the host's namespaces; it is process 1 there.

        `nsenter -a -t PID` opens a shell on the host. If the process is killed, all commands of
        `start` on the host end too, and the host is gone for good.
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
        """Starts a command on the host, in its own process group; it ends with the network.

        Args:
            host: the name of the host.
            command: the program and its arguments.
            cwd: the working folder. By default that of this process, or / on a host with its own
                root folder.
            environment: added to the variables of this process, or all variables of the command on
                a host with its own root folder.
            options: options of `subprocess.Popen`, such as `stdout`. The streams carry bytes.
        """
        if not command:
            raise ConfigError("command", command, "must be a program and its arguments")
        has_root = host in self._roots
        folder = os.fspath(cwd) if cwd is not None else "/" if has_root else os.getcwd()
        words = [str(self.holder(host)), folder, *(os.fspath(word) for word in command)]
        process = HostProcess(
            program("tfdist.testing.enter", *words),
            env={**({} if has_root else os.environ), **(environment or {})},
            start_new_session=True,
            **options,
        )
        with self._lock:
            self._started = [each for each in self._started if each.poll() is None]
            self._started.append(process)
        return process

    def configure(self, host: str | None, *command: str, lines: str = "") -> str:
        """Runs a command such as `ip` in the network of the host, or of the switch if it is None.

        Files and process numbers are those of this process. Returns the command's output; blocks
        for at most 10 s.

        Args:
            host: the name of the host, or None.
            command: the program and its arguments.
            lines: the command's standard input.

        Raises:
            ClusterError: the command failed; the message contains its error output.
        """
        process = self._switch if host is None else self.holder(host)
        what = f"{'the switch' if host is None else host}: {' '.join(command)}"
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
            raise ClusterError(f"{what}: still running after {_COMMAND_SECS:g} s") from None
        if ended.returncode != 0:
            raise ClusterError(f"{what}: {ended.stderr.strip()}")
        return ended.stdout

    def link(self, host: str) -> RelayedLink:
        """The link of a `relayed` host, whose quality can be changed."""
        self.holder(host)
        if host not in self._links:
            raise ConfigError("host", host, "this fault needs a host in `relayed` of the Network")
        return self._links[host]

    @property
    def _switch(self) -> int:
        if self._holder is None:
            raise ClusterError("the network is not up")
        return self._holder.pid

    def _index(self, host: str) -> int:
        if host not in self.hosts:
            raise ConfigError("host", host, f"must be one of {', '.join(self.hosts)}")
        return self.hosts.index(host)

    def _start_holder(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tfdist-network-"))
        shared = self._folder / "shared"
        shared.mkdir()
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in self.hosts)]
        (self._folder / "hosts").write_text("\n".join(lines) + "\n", encoding="ascii")
        roots = {name: self._roots.get(name) for name in self.hosts}
        settings = Settings(roots, str(self._folder), self._shared_bytes)
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
        self._holder.stdin.write(settings.line())
        self._holder.stdin.flush()
        if not select.select([self._holder.stdout], [], [], _COMMAND_SECS)[0]:
            raise ClusterError(f"no answer from a network's holder after {_COMMAND_SECS:g} s")
        answer = Answer.parse(self._holder.stdout.readline())
        if answer.error is not None:
            raise ClusterError(f"this machine refused a network of hosts: {answer.error}")
        self._inits = answer.inits
        self.shared = shared
        self.shared_here = Path(f"/proc/{self._holder.pid}/root{shared}")

    def _connect(self) -> None:
        self._run_ip(
            None, f"link add {BRIDGE} type bridge", f"link set {BRIDGE} addrgenmode none up"
        )
        for host in self.hosts:
            self._make_link(host)
            # addrgenmode none: an IPv6 address would make the kernel send traffic of its own.
            # mcast_probes: after three, a connection to a host that a fault cuts off would fail.
            port = f"link set {self.port(host)} addrgenmode none"
            self._run_ip(None, port, f"link set {self.port(host)} master {BRIDGE} up")
            self._run_ip(
                host,
                "link set lo up",
                f"link set {CARD} addrgenmode none",
                f"addr add {self.address(host)}/24 dev {CARD}",
                f"ntable change name arp_cache dev {CARD} mcast_probes {_PROBES}",
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
    """What this machine is known to lack for a `Network`, in words."""
    missing = [] if os.geteuid() == 0 else [f"root, but this is user {os.geteuid()}"]
    for name, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(name) is None:
            missing.append(f"the program {name} (from {package})")
    if relayed and not os.path.exists(TUN):
        missing.append(f"{TUN} (from the kernel), for a relayed link")
    return missing
