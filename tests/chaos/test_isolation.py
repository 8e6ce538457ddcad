"""`isolate` and `--isolate`: nobody outside reaches the servers, or one line says why not."""

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

# Its worker serves until a file says that it may go.
WAIT_FOR_GO = """
import os, pathlib, sys, tfdist
from tfdist.testing import poll_until
folder = pathlib.Path(sys.argv[1])
task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    new = folder / f"{task.name}.new"
    new.write_text(os.environ["TF_CONFIG"])
    new.rename(folder / task.name)
    poll_until((folder / "go").exists, "the test has looked", timeout=60)
"""

# Its worker 1 waits at a barrier until a file says that worker 0 may come.
MEET_LATE = (
    WAIT_FOR_GO.replace(
        "with tfdist.worker_server(task):",
        "with tfdist.worker_server(task), tfdist.Barrier(task, 'meeting') as barrier:",
    ).replace("    poll_until", "    if task.is_chief: poll_until")
    + "    barrier.wait()\n"
)

# Says what isolate() says, and what this process then is and can do.
AFTER_ISOLATE = """
import json, os, socket, subprocess, sys, threading
from tfdist.cluster.isolation import isolate, is_reachable
from tfdist.errors import ClusterError
def state():
    return [os.getuid(), os.getgid(), os.stat("/proc/self/ns/net").st_ino, is_reachable()]
before, said = state(), None
if "thread" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    isolate()
except ClusterError as error:
    said = str(error)
here = os.stat("/proc/self/ns/net").st_ino
child = int(subprocess.check_output(["stat", "-Lc", "%i", "/proc/self/ns/net"]))
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), 10).close()
print(json.dumps([said, before, state(), child == here]))
"""

# Puts a network card, as a container gets it, into a network namespace of its own.
WITH_CARD = """
ip link set lo up && ip link add card0 type veth peer name card1
ip link set card0 up && ip link set card1 up
"""
TEST_THAT_TELLS = "import psutil\ndef test_it(): print('has', *sorted(psutil.net_if_stats()))\n"
NO_MORE = "echo 0 >/proc/sys/user/max_net_namespaces"


@pytest.fixture
def as_root_of_a_namespace():
    """In front of a command: makes it root of a user namespace, which it may then restrict."""
    shell = ["unshare", "--user", "--map-root-user", "sh", "-ec"]
    needs([*shell, "true"], "user namespaces")
    return lambda prepare, *command: [*shell, f'{prepare} "$@"', "sh", *command]


@pytest.fixture
def beside_a_card():
    """The same, in a network namespace that has a network card."""
    shell = ["unshare", "--user", "--map-root-user", "--net", "sh", "-ec"]
    needs([*shell, WITH_CARD], "network namespaces, iproute2, and its devices veth")
    return lambda prepare, *command: [*shell, f'{WITH_CARD}\n{prepare} "$@"', "sh", *command]


def needs(command, what):
    """Skips a test that can say nothing on this machine; fails it in CI, where nobody would see."""
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        because = f"this machine has no {what}: {tried.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(because)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param("exec", id="root"),
        pytest.param("exec setpriv --bounding-set=-sys_admin", id="no network namespace alone"),
        # The network namespace is there, but its loopback may not be raised.
        pytest.param("exec setpriv --bounding-set=-net_admin", id="no rights inside it"),
    ],
)
def test_a_process_isolates_itself_and_what_it_starts(as_root_of_a_namespace, prepare):
    said, before, after, inherited = ended_as_json(as_root_of_a_namespace, prepare)
    assert said is None
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert not after[3]
    assert inherited


@pytest.mark.parametrize(
    ("prepare", "argument", "why"),
    [
        pytest.param(f"{NO_MORE}; exec", "", "No space left on device", id="no more namespaces"),
        # The user namespace is there, but nobody may be mapped into it: too late to turn back.
        pytest.param(
            "exec setpriv --bounding-set=-sys_admin,-setfcap",
            "",
            "Operation not permitted",
            id="no rights",
        ),
        pytest.param("exec", "thread", "2 threads", id="threads"),
    ],
)
def test_a_refusal_says_why_and_changes_nothing(as_root_of_a_namespace, prepare, argument, why):
    said, before, after, inherited = ended_as_json(as_root_of_a_namespace, prepare, argument)
    assert why in said
    assert "\n" not in said
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
def test_only_an_isolated_run_has_no_port_that_others_see(tmp_path, option):
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
        # As of somebody who is not root: the network is of a user namespace of its own.
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
    # Where the shell is, which is not where the launcher is then.
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
        poll_until(lambda: barriers() == waits, "it has arrived", timeout=60)
        run = RunFolder.find(str(logs))
        assert namespace("self") != namespace(run.about.launcher.pid)
    finally:
        (tmp_path / "go").touch()
        _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, errors


def test_a_refused_run_says_so_in_one_line_and_goes_on(as_root_of_a_namespace, tmp_path):
    (tmp_path / "job.py").write_text("print('ran')")
    job = command("--isolate", "--no-prefix", "--ps", 0, "--workers", 1, tmp_path / "job.py")
    ended = subprocess.run(
        as_root_of_a_namespace(f"{NO_MORE}; exec", *job),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "ran\n")
    assert ended.stderr.startswith(
        "tfdist: --isolate was refused, so TensorFlow's ports are open: "
    )
    assert ended.stderr.count("--isolate was refused") == 1


@pytest.mark.parametrize(
    ("flags", "isup", "reachable"),
    [
        ("up,broadcast,running,multicast", True, True),
        ("broadcast,multicast", False, False),
        ("up,loopback,running", True, False),
    ],
)
def test_open_ports_are_told_where_there_is_a_network(monkeypatch, capsys, flags, isup, reachable):
    loopback = SimpleNamespace(isup=True, flags="up,loopback,running")
    card = SimpleNamespace(isup=isup, flags=flags)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"lo": loopback, "card": card})
    isolate_or_say(wanted=False)
    told = capsys.readouterr()
    line = "tfdist: TensorFlow's ports are open to the network; --isolate or a firewall closes them"
    assert (told.out, told.err) == ("", f"{line}\n" if reachable else "")


@pytest.mark.parametrize(
    ("prepare", "setting", "ci", "code", "told", "has"),
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
def test_pytest_isolates_itself(beside_a_card, tmp_path, prepare, setting, ci, code, told, has):
    (tmp_path / "test_it.py").write_text(TEST_THAT_TELLS)
    options = ["-rP", "-c", os.devnull, "-o", f"tfdist_isolate={setting}", "--rootdir", tmp_path]
    ended = subprocess.run(
        beside_a_card(prepare, sys.executable, "-m", "pytest", *options, tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "CI": ci},
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == code, output
    assert told in output
    assert ("solated" in output) == bool(told)
    assert has in output


def listening_ports(pids):
    """The ports of this process's network namespace at which these processes listen."""
    return {
        connection.laddr.port
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }


def namespace(pid):
    return os.stat(f"/proc/{pid}/ns/net").st_ino
