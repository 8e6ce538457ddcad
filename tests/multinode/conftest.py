"""Fixtures for tests on a network of hosts, and programs that communicate over it."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfdist.testing import Network
from tfdist.testing.network import missing_for_network

ECHO = [sys.executable, "-I", "-S", str(Path(__file__).with_name("echo.py"))]
HOSTS = ("a", "b", "c")  # c is relayed


@pytest.fixture(autouse=True)
def _needs_a_network():
    if missing := missing_for_network(relayed=True):
        because = f"a network of hosts needs {'; '.join(missing)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(because)


class EchoNetwork:
    """A network with an echo.py server on each host; the hosts know each other's hardware address.

    A host whose question for such an address is lost repeats it only after a second, so its first
    connection after a fault would be late.
    """

    def __init__(self, network):
        self.network = network
        self.servers = {host: self.talk(host, "serve") for host in network.hosts}
        pairs = list(itertools.permutations(network.hosts, 2))
        assert all("trips" in result for result in self.ask_all(pairs, timeout=10))

    def talk(self, host, *arguments):
        """Starts echo.py, and returns it once it is ready."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = self.network.start(host, [*ECHO, *arguments], **pipes)
        assert process.stdout.readline() == b"ready\n"
        return process

    def ask(self, host, other, **options):
        return self.ask_all([(host, other)], **options)[0]

    def ask_all(self, pairs, *, timeout=0.3, size=1000):
        """The results of `ask` of echo.py for each (host, other), all in parallel."""
        processes = [
            self.network.start(
                host, [*ECHO, "ask", other, str(timeout), str(size)], stdout=subprocess.PIPE
            )
            for host, other in pairs
        ]
        return [json.loads(process.communicate(timeout=60)[0]) for process in processes]

    def send(self, host, other, count):
        """Sends datagrams, and returns how many arrived."""
        before = self.ask(other, other)["datagrams"]
        assert self.network.start(host, [*ECHO, "send", other, str(count)]).wait(30) == 0
        return self.ask(other, other)["datagrams"] - before


class Connection:
    """A lasting connection between two hosts."""

    def __init__(self, echo, host, other):
        self._process = echo.talk(host, "hold", other)

    def answers(self, secs):
        """Whether all bytes sent so far, and one more, come back within that time."""
        self._process.stdin.write(b"%f\n" % secs)
        self._process.stdin.flush()
        return self._process.stdout.readline() == b"answered\n"


@pytest.fixture(scope="module")
def echo():
    """A network that each test leaves unchanged."""
    with Network(HOSTS, relayed=["c"], shared_bytes=8 << 20) as network:
        yield EchoNetwork(network)
