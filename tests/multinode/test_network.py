"""A network of hosts is closed and complete, and leaves nothing behind."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.multinode.conftest import ECHO, HOSTS, Connection, EchoNetwork
from tfdist.errors import ClusterError, ConfigError
from tfdist.testing import Bind, Network, RootFolder, poll_until

LEAVES_AN_ORPHAN = ["sh", "-c", "setsid sleep 600 & exec sleep 600"]

# Makes a network, runs a command on it, prints the shared folder, and waits to be killed.
LAUNCHER = """
import json, sys, tfdist.testing
with tfdist.testing.Network(["a", "b"], relayed=["b"]) as network:
    network.start("a", sys.argv[1:])
    print(network.shared, flush=True)
    sys.stdin.read()
"""


def output(network, host, *command):
    return network.start(host, command, stdout=subprocess.PIPE).communicate(timeout=30)[0].decode()


def python(network, host, code):
    """The value of an expression on a host."""
    program = f"import json, socket, os, subprocess\nprint(json.dumps({code}))"
    return json.loads(output(network, host, sys.executable, "-I", "-S", "-c", program))


def test_each_host_has_its_name_and_resolves_all_names(echo):
    for host in HOSTS:
        names = ("localhost", *HOSTS)
        found = python(echo.network, host, f"[socket.gethostbyname(n) for n in {names}]")
        assert found == ["127.0.0.1", *map(echo.network.address, HOSTS)]
        assert python(echo.network, host, "socket.gethostname()") == host


def test_a_host_sees_only_its_own_processes_and_one_card(echo):
    pids = python(echo.network, "a", "sorted(int(p) for p in os.listdir('/proc') if p.isdigit())")
    assert pids[0] == 1
    assert len(pids) == 3, "its init, its server, and this command"
    assert python(echo.network, "a", "[name for _, name in socket.if_nameindex()]") == [
        "lo",
        "eth0",
    ]


def test_a_host_has_no_route_to_the_outside(echo):
    code = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(('192.0.2.1', 9))"
    assert python(echo.network, "a", code) == errno.ENETUNREACH


def test_a_host_is_invisible_from_outside():
    def seen():
        return socket.if_nameindex(), psutil.net_if_addrs(), Path("/proc/self/mounts").read_text()

    before = seen()
    with Network(["a"]) as network:
        EchoNetwork(network)
        assert seen() == before
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", 2222))


def test_two_networks_with_the_same_names_and_addresses_do_not_interfere(echo):
    with Network(HOSTS) as other:
        assert other.address("a") == echo.network.address("a")
        name = output(other, "b", *ECHO, "ask", "a", "0.3", "1")
        assert json.loads(name)["error"] == "ConnectionRefusedError", (
            "no server runs on the other a"
        )
        (other.shared_here / "note").touch()
        assert not (echo.network.shared_here / "note").exists()
    assert Connection(echo, "b", "a").answers(10)


def test_the_hosts_share_a_folder_of_limited_size(echo):
    network = echo.network
    assert network.start("a", ["sh", "-c", f"echo from a >{network.shared}/x"]).wait(10) == 0
    assert output(network, "b", "cat", network.shared / "x") == "from a\n"
    assert (network.shared_here / "x").read_text() == "from a\n"
    assert not (network.shared / "x").exists()
    whole = python(network, "c", f"os.statvfs('{network.shared}').f_blocks * 4096")
    assert whole == 8 << 20


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 7", 7),
        ("kill -USR1 $$", -signal.SIGUSR1),
    ],
)
def test_a_command_on_a_host_has_the_usual_return_code(echo, script, code):
    assert echo.network.start("a", ["sh", "-c", script]).wait(10) == code


def test_signals_reach_a_command_and_its_children(echo):
    script = "trap 'echo bye; exit 3' TERM; sleep 600 & echo ready; while :; do wait; done"
    process = echo.network.start("a", ["sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    poll_until(lambda: {child.name() for child in children} == {"sh", "sleep"}, "both run")
    process.stop()
    for child in children:
        poll_until(lambda child=child: child.status() == psutil.STATUS_STOPPED, "all are stopped")
    process.wake()
    process.terminate()
    assert process.communicate(timeout=10)[0] == b"bye\n"
    assert process.returncode == 3
    poll_until(lambda: not any(child.is_running() for child in children), "both have ended")


def test_a_command_gets_its_environment_and_folder(echo, tmp_path):
    started = echo.network.start(
        "a",
        ["sh", "-c", "echo $NAME; pwd; nonesuch; exec nonesuch"],
        environment={"NAME": "value"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, _ = started.communicate(timeout=10)
    assert (out.decode(), started.returncode) == (f"value\n{tmp_path}\n", 127)
    assert echo.network.start("a", ["nonesuch"], stderr=subprocess.DEVNULL).wait(10) == 127


def test_killing_its_holder_ends_one_host_and_no_other():
    with Network(["a", "b"]) as network:
        servers = EchoNetwork(network).servers
        os.kill(network.holder("a"), signal.SIGKILL)
        assert servers["a"].wait(10) == -signal.SIGKILL
        assert servers["b"].poll() is None
        assert network.start("a", ["true"], stderr=subprocess.DEVNULL).wait(10) == 125


def test_an_orphan_on_a_host_is_reaped(echo):
    assert output(echo.network, "b", "sh", "-c", "(sleep 0.01 &) ; echo done") == "done\n"
    states = "[open(f'/proc/{p}/stat').read() for p in os.listdir('/proc') if p.isdigit()]"
    poll_until(
        lambda: ") Z " not in "".join(python(echo.network, "b", states)), "no zombie is left"
    )


def test_leaving_a_network_leaves_nothing():
    children = set(psutil.Process().children(recursive=True))
    with Network(["a", "b"], relayed=["b"]) as network:
        process = psutil.Process(network.start("a", LEAVES_AN_ORPHAN).pid)
        poll_until(lambda: len(process.children(recursive=True)) == 2, "both run")
        folder = network.shared.parent
        ours = set(psutil.Process().children(recursive=True)) - children
        assert len(ours) >= 7
    assert not any(process.is_running() for process in ours)
    assert not folder.exists()
    with pytest.raises(ClusterError, match="not up"):
        network.start("a", ["true"])


def test_a_killed_test_process_leaves_nothing():
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *LEAVES_AN_ORPHAN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher:
        folder = Path(launcher.stdout.readline().strip()).parent
        left = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
    assert len(left) >= 5
    poll_until(lambda: not any(process.is_running() for process in left), "all are gone")
    poll_until(lambda: not folder.exists(), "its folder is removed")


def test_a_host_with_its_own_root_folder_sees_nothing_else(tmp_path):
    (tmp_path / "file").write_text("text")
    system = [Bind(path, path, read_only=True) for path in ("/usr", "/bin", "/lib", "/lib64")]
    own = [Bind(str(tmp_path / "file"), "/srv/deep/file"), Bind("name", "/srv/deep")]
    root = RootFolder([*own, *system], tmpfs=["/tmp"])
    with Network(["a", "b"], roots={"a": root, "b": root}) as network:
        script = (
            "ls -A / /tmp /srv/deep; cat /srv/deep/file; touch /usr/x; echo x >/srv/deep/x; env"
        )
        process = network.start(
            "a",
            ["/bin/sh", "-c", script],
            environment={"NAME": "value"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        lines = process.communicate(timeout=30)[0].decode().splitlines()
        top, rest = lines[1 : lines.index("")], lines[lines.index("") + 1 :]
        assert {*top} == {"bin", "lib", "lib64", "usr", "srv", "tmp", "dev", "etc", "proc", "sys"}
        assert rest[:4] == ["/srv/deep:", "file", "", "/tmp:"]
        assert rest[4] == "texttouch: cannot touch '/usr/x': Read-only file system"
        assert {*rest[5:]} == {"NAME=value", "PWD=/"}
        assert (network.shared_here / "name/x").read_text() == "x\n"
        assert network.start("b", ["/bin/test", "-e", "/srv/deep/x"], cwd="/tmp").wait(10) == 0
        assert network.start("b", ["/bin/hostname"], stdout=subprocess.DEVNULL).wait(10) == 0


def test_the_error_names_the_host_whose_root_folder_cannot_be_made():
    root = RootFolder([Bind("/nonexistent", "/x")])
    with pytest.raises(ClusterError, match=r"host a: .*No such file"):
        Network(["a"], roots={"a": root}).__enter__()


@pytest.mark.parametrize(
    ("hosts", "options", "message"),
    [
        ([], {}, "hosts: got 0"),
        (["a"] * 2, {}, "hosts: got 'a'"),
        (["A_b"], {}, "hosts: got 'A_b'"),
        (["localhost"], {}, "hosts: got 'localhost'"),
        (["a"], {"relayed": ["b"]}, "relayed: got 'b'"),
        (["a"], {"roots": {"b": RootFolder()}}, "roots: got 'b'"),
        (["a"], {"shared_bytes": 0}, "shared_bytes: got 0"),
    ],
)
def test_bad_input_is_rejected(hosts, options, message):
    with pytest.raises(ConfigError, match=message):
        Network(hosts, **options)


def test_all_missing_requirements_are_listed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"root, but .* 1000; the program ip .*; .* nsenter"):
        Network(["a"]).__enter__()


def test_an_error_of_the_kernel_is_shown(monkeypatch):
    # Root in its own user namespace, which may have no network namespace.
    code = (
        "import tfdist.testing, tfdist.errors\n"
        "try: tfdist.testing.Network(['a']).__enter__()\n"
        "except tfdist.errors.ClusterError as error: print(error)"
    )
    limit = 'echo 0 >/proc/sys/user/max_net_namespaces; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"]
    ended = subprocess.run(
        [*command, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "refused a network of hosts: [Errno 28] No space left on device" in ended.stdout
