"""scripts/with-dockerd runs a command with its own docker engine, which docker compose can use."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tfdist.testing import poll_until

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts/with-dockerd")


@pytest.fixture(autouse=True)
def _needs_dockerd():
    if shutil.which("dockerd") is None:
        because = "there is no dockerd here (apt-get install --no-install-recommends docker.io)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(because)


@pytest.fixture(autouse=True)
def _one_engine_at_a_time(tmp_path_factory):
    """Otherwise `left` may find the engine of another pytest worker."""
    with open(tmp_path_factory.getbasetemp().parent / "dockerd.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def left(tmp_path):
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob("tfdist-dockerd-*")]
    engines = [p.name() for p in psutil.process_iter() if is_engine(p)]
    return [*groups, *engines, *map(str, tmp_path.iterdir())]


def is_engine(process):
    try:
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and process.name() in ("dockerd", "containerd")
    except psutil.NoSuchProcess:
        return False


def test_docker_compose_passes_the_tests_of_compose_nodes():
    tests = [sys.executable, "-m", "pytest", "-q", "tests/multinode/test_compose_nodes.py"]
    ended = subprocess.run(
        [SCRIPT, *tests, "-k", "[compose", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=85,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout


def test_the_exit_code_is_the_command_s_and_nothing_is_left(tmp_path):
    before = left(tmp_path)
    script = "docker version --format {{.Server.Version}}; test -S ${DOCKER_HOST#unix://}; exit 9"
    ended = subprocess.run(
        [SCRIPT, "sh", "-ec", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (9, "")
    assert ended.stdout[:1].isdigit()
    assert left(tmp_path) == before


def test_a_signal_ends_the_engine_and_nothing_is_left(tmp_path):
    before = left(tmp_path)
    running = subprocess.Popen(
        [SCRIPT, "sh", "-c", "echo ready; exec sleep 600"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with running:
        assert running.stdout.readline() == b"ready\n"
        os.killpg(running.pid, signal.SIGTERM)
    assert running.returncode != 0
    poll_until(lambda: left(tmp_path) == before, "nothing is left")


def test_a_missing_program_is_named(tmp_path):
    for name in ("sh", "id", "mktemp"):
        (tmp_path / name).symlink_to(shutil.which(name))
    ended = subprocess.run(
        [SCRIPT, "true"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    message = "with-dockerd: the program dockerd is missing\n"
    assert (ended.returncode, ended.stderr) == (69, message)
