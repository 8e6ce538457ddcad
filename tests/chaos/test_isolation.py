"""`isolate` and `--isolate`: the ports are closed to others, or one line gives the reason."""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from tests.launches import command
from tfdist.cli.run import isolate_or_say
from tfdist.runs.folder import RunFolder
from tfdist.testing import poll_until

ROOT = pathlib.Path(__file__).parents[2]

# The worker serves until the file `go` exists.
WAIT_FOR_GO = """
import os, pathlib, sys, tfdist
from tfdist.testing import poll_until
folder = pathlib.Path(sys.argv[1])
task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    new = folder / f"{task.name}.new"
    new.write_text(os.environ["TF_CONFIG"])
    new.rename(folder / task.name)
    poll_until((folder / "go").exists, "the test has created go", timeout=60)
"""

# Worker 1 waits at a barrier, to which worker 0 comes once the file `go` exists.
MEET_LATE = (
    WAIT_FOR_GO.replace(
        "with tfdist.worker_server(task):",
        "with tfdist.worker_server(task), tfdist.Barrier(task, 'meeting') as barrier:",
    ).replace("    poll_until", "    if task.is_chief: poll_until")
    + "    barrier.wait()\n"
)

# Prints the error of isolate(), and the state of this process before and after it.
AFTER_ISOLATE = """
import json, os, socket, subprocess, sys, threading
from tfdist.cluster.isolation import isolate, is_reachable
from tfdist.errors import ClusterError
def state():
    return [os.getuid(), os.getgid(), os.stat("/proc/self/ns/net").st_ino, is_reachable()]
before, failure = state(), None
if "thread" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    isolate()
except ClusterError as error:
    failure = str(error)
here = os.stat("/proc/self/ns/net").st_ino
child = int(subprocess.check_output(["stat", "-Lc", "%i", "/proc/self/ns/net"]))
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), 10).close()
print(json.dumps([failure, before, state(), child == here]))
"""

# Adds a network card, like that of a container, to a network namespace.
WITH_CARD = """
ip link set lo up && ip link add card0 type veth peer name card1
ip link set card0 up && ip link set card1 up
"""
PRINTS_CARDS = "import psutil\ndef test_it(): print('has', *sorted(psutil.net_if_stats()))\n"
NO_MORE = "echo 0 >/proc/sys/user/max_net_namespaces"


@pytest.fixture
def as_root():
    """Wraps a command: makes it root of a user namespace, after the shell command `prepare`."""
    shell = ["unshare", "--user", "--map-root-user", "sh", "-ec"]
    needs([*shell, "true"], "user namespaces")
    return lambda prepare, *command: [*shell, f'{prepare} "$@"', "sh", *command]


@pytest.fixture
def with_a_card():
    """The same, in a network namespace with a network card."""
    shell = ["unshare", "--user", "--map-root-user", "--net", "sh", "-ec"]
    needs([*shell, WITH_CARD], "network namespaces, iproute2, and its devices veth")
    return lambda prepare, *command: [*shell, f'{WITH_CARD}\n{prepare} "$@"', "sh", *command]


def needs(command, what):
    """Skips a test if `command` fails on this machine; in CI the test fails."""
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        because = f"this machine has no {what}: {tried.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(because)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param("exec", id="root"),
        pytest.param("exec setpriv --bounding-set=-sys_admin", id="no network namespace alone"),
        # The network namespace is made, but its loopback cannot be set up.
        pytest.param("exec setpriv --bounding-set=-net_admin", id="no rights inside"),
    ],
)
def test_a_process_isolates_itself_and_what_it_starts(as_root, prepare):
    failure, before, after, inherited = ended_as_json(as_root, prepare)
    assert failure is None
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert not after[3]
    assert inherited


@pytest.mark.parametrize(
    ("prepare", "argument", "why"),
    [
        pytest.param(f"{NO_MORE}; exec", "", "No space left on device", id="no more namespaces"),
        # The user namespace is made, but no user can be mapped into it.
        pytest.param(
            "exec setpriv --bounding-set=-sys_admin,-setfcap",
            "",
            "Operation not permitted",
            id="no rights",
        ),
        pytest.param("exec", "thread", "2 threads", id="threads"),
    ],
)
def test_a_failed_isolation_gives_the_reason_and_changes_nothing(as_root, prepare, argument, why):
    failure, before, after, inherited = ended_as_json(as_root, prepare, argument)
    assert why in failure
    assert "\n" not in failure
    assert after == before
    assert inherited


def ended_as_json(wrapped, prepare, *arguments):
    ended = subprocess.run(
        wrapped(prepare, sys.executable, "-c", AFTER_ISOLATE, *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("option", ["--isolate", "--no-isolate"])
def test_other_processes_see_the_ports_of_a_run_unless_it_is_isolated(tmp_path, option):
    needs(["unshare", "--user", "--map-root-user", "--net", "true"], "network namespaces")
    (tmp_path / "job.py").write_text(WAIT_FOR_GO)
    launcher = subprocess.Popen(
        command(option, "--workers", 1, tmp_path / "job.py", tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        poll_until((tmp_path / "worker:0").exists, "the worker serves", timeout=60)
        cluster = json.loads((tmp_path / "worker:0").read_text())["cluster"]
        ports = {int(address.split(":")[1]) for address in [*cluster["ps"], *cluster["worker"]]}
        tasks = psutil.Process(launcher.pid).children(recursive=True)
        seen = listening_ports({task.pid for task in tasks})
        namespaces = {namespace(pid) for pid in (launcher.pid, *(task.pid for task in tasks))}
    finally:
        (tmp_path / "go").touch()
        output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors
    assert output == ""
    ours = namespace("self")
    if option == "--isolate":
        assert "isolate" not in errors, errors
        assert seen == set()
        assert len(namespaces) == 1
        assert ours not in namespaces
        assert psutil.wait_procs(tasks, timeout=5)[1] == []
    else:
        assert len(ports) == 2
        assert seen == ports
        assert namespaces == {ours}


@pytest.mark.parametrize(
    "restrict",
    [
        pytest.param([], id="a network namespace"),
        # As for a user other than root: the network belongs to a new user namespace.
        pytest.param(["setpriv", "--bounding-set=-sys_admin"], id="a user namespace too"),
    ],
)
def test_the_barriers_of_an_isolated_run_are_read(tmp_path, restrict):
    shell = ["unshare", "--user", "--map-root-user", "sh", "-ec", '"$@"; exit', "sh", *restrict]
    needs([*shell, "true"], "user namespaces")
    (tmp_path / "job.py").write_text(MEET_LATE)
    logs = tmp_path / "logs"
    job = command("--isolate", "--log-dir", logs, tmp_path / "job.py", tmp_path)
    launcher = subprocess.Popen([*shell, *job], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # Enters the user namespace of the shell, not the network of the launcher.
    there = ["nsenter", "--preserve-credentials", "--user", "--target", str(launcher.pid)]

    def barriers():
        ended = subprocess.run(
            [*there, *restrict, sys.executable, "-m", "tfdist", "status", logs, "--json"],
            capture_output=True,
            timeout=90,
            check=False,
        )
        report = json.loads(ended.stdout)
        assert report["barriers_failure"] is None
        [barrier] = report["barriers"]
        return {place["trainer"]: place["state"] for place in barrier["places"]}

    try:
        poll_until((tmp_path / "worker:1").exists, "worker 1 is at the barrier", timeout=60)
        waits = {"worker:0": "missing", "worker:1": "arrived"}
        poll_until(lambda: barriers() == waits, "the barrier waits for worker 0", timeout=60)
        run = RunFolder.find(str(logs))
        assert namespace("self") != namespace(run.about.launcher.pid)
    finally:
        (tmp_path / "go").touch()
        _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors


def test_a_run_that_cannot_be_isolated_prints_one_line_and_continues(as_root, tmp_path):
    (tmp_path / "job.py").write_text("print('ran')")
    job = command("--isolate", "--no-prefix", "--ps", 0, "--workers", 1, tmp_path / "job.py")
    ended = subprocess.run(
        as_root(f"{NO_MORE}; exec", *job),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "ran\n")
    assert ended.stderr.startswith("tfdist: warning: --isolate failed, and other machines can ")
    assert ended.stderr.count("--isolate failed") == 1


@pytest.mark.parametrize(
    ("flags", "isup", "reachable"),
    [
        ("up,broadcast,running,multicast", True, True),
        ("broadcast,multicast", False, False),
        ("up,loopback,running", True, False),
    ],
)
def test_open_ports_are_reported_if_there_is_a_network(monkeypatch, capsys, flags, isup, reachable):
    loopback = SimpleNamespace(isup=True, flags="up,loopback,running")
    card = SimpleNamespace(isup=isup, flags=flags)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"lo": loopback, "card": card})
    isolate_or_say(wanted=False)
    printed = capsys.readouterr()
    line = (
        "tfdist: warning: other machines can reach the TensorFlow servers; use --isolate or a "
        "firewall"
    )
    assert (printed.out, printed.err) == ("", f"{line}\n" if reachable else "")


@pytest.mark.parametrize(
    ("prepare", "setting", "ci", "code", "line", "has"),
    [
        ("exec", "true", "", 0, "tfdist: isolated, in a private network namespace", "has lo\n"),
        (
            f"{NO_MORE}; exec",
            "true",
            "",
            0,
            "tfdist: NOT isolated, so other machines",
            "has card0 ",
        ),
        (f"{NO_MORE}; exec", "true", "1", 4, "ERROR: tfdist_isolate: NOT isolated, ", ""),
        ("exec", "false", "1", 0, "", "has card0 "),
    ],
)
def test_pytest_isolates_itself(with_a_card, tmp_path, prepare, setting, ci, code, line, has):
    (tmp_path / "test_it.py").write_text(PRINTS_CARDS)
    options = ["-rP", "-c", os.devnull, "-o", f"tfdist_isolate={setting}", "--rootdir", tmp_path]
    ended = subprocess.run(
        with_a_card(prepare, sys.executable, "-m", "pytest", *options, tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "CI": ci},
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == code, output
    assert line in output
    assert ("solated" in output) == bool(line)
    assert has in output


def listening_ports(pids):
    """The ports of `pids` that this process's network namespace shows."""
    return {
        connection.laddr.port
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }


def namespace(pid):
    return os.stat(f"/proc/{pid}/ns/net").st_ino
