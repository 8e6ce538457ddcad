"""A launcher that is killed at any moment leaves no process of its tasks behind."""

import json
import os
import socket
import subprocess
import sys
import uuid

import psutil
import pytest

from tests.launches import command
from tfdist.testing import poll_until

GONE_SECS = 5.0
MARKER = "TFDIST_TEST_MARKER"

# Each worker starts a program; worker 1 then ends, and worker 0 waits.
STARTS_ANOTHER = """
import os, pathlib, subprocess, sys, threading, tfdist
folder = pathlib.Path(sys.argv[1])
task = tfdist.Task.from_env()
with tfdist.worker_server(task):
    child = subprocess.Popen(["sleep", "600"])
    new = folder / f"{task.name}.new"
    new.write_text(f"{os.environ['TF_CONFIG']}\\n{child.pid}")
    new.rename(folder / task.name)
    if task.is_chief:
        threading.Event().wait()
"""


@pytest.fixture
def marker():
    """A text in the environment of a launcher, which all its descendants inherit."""
    marker = uuid.uuid4().hex
    yield marker
    for process in descendants(marker):
        process.kill()


def descendants(marker):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == marker and process.status() != "zombie":
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended meanwhile, or of another user
    return found


def fork_server_runs(_, marker):
    return any("forkserver" in " ".join(each.cmdline()) for each in descendants(marker))


def tasks_are_forked(_, marker):
    return len(descendants(marker)) > 4  # launcher, tracker, fork server, guardian


def worker_0_has_started_a_program(folder, _):
    return (folder / "worker:0").exists()


def worker_1_has_ended(folder, _):
    note = folder / "worker:1"
    return note.exists() and not psutil.pid_exists(int(note.read_text().split("\n")[1]))


@pytest.mark.rotates(2)
@pytest.mark.parametrize(
    "moment",
    [fork_server_runs, tasks_are_forked, worker_0_has_started_a_program, worker_1_has_ended],
    ids=lambda moment: moment.__name__,
)
def test_nothing_outlives_a_killed_launcher(marker, tmp_path, moment):
    (tmp_path / "job.py").write_text(STARTS_ANOTHER)
    launcher = subprocess.Popen(
        command("--ps", 1, "--workers", 2, tmp_path / "job.py", tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, MARKER: marker, "TMPDIR": str(tmp_path)},
    )
    poll_until(lambda: moment(tmp_path, marker), moment.__name__, timeout=60)
    launcher.kill()
    launcher.communicate(timeout=GONE_SECS)  # no process holds its streams open
    poll_until(lambda: not descendants(marker), "all processes have ended", timeout=GONE_SECS)
    for note in tmp_path.glob("worker:?"):
        for addresses in json.loads(note.read_text().split("\n")[0])["cluster"].values():
            for port in [int(address.split(":")[1]) for address in addresses]:
                # A process is a zombie a moment before the last of its threads closes the port.
                poll_until(
                    lambda port=port: is_free(port), f"port {port} is free", timeout=GONE_SECS
                )


def is_free(port):
    with socket.socket() as another:
        # Ignores remains of connections; a listener would not share the port.
        another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            another.bind(("", port))
        except OSError:
            return False
        return True


def test_a_program_that_does_not_close_its_cluster_leaves_no_process(marker):
    program = (
        "from tfdist.cluster.local import local_cluster; "
        "local_cluster(1, 1, backend='processes').__enter__()"
    )
    environment = {**os.environ, MARKER: marker}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    poll_until(lambda: not descendants(marker), "all processes have ended", timeout=GONE_SECS)
