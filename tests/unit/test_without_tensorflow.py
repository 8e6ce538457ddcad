"""Some commands work in an environment that has tfdist's requirements and no TensorFlow.

The environment is a folder with links to the installed requirements, which a Python without `site`
has on its path. So this also shows that the declared requirements suffice.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def required(name, found):
    """Adds the distribution `name` and all that it requires, without extras, to `found`."""
    if name not in found:
        found[name] = importlib.metadata.distribution(name)
        for requirement in found[name].requires or []:
            if ";" not in requirement:
                required(re.match(r"[\w.-]+", requirement)[0], found)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python with the requirements of tfdist alone."""
    packages = tmp_path_factory.mktemp("packages")
    found = {"tensorflow": None}  # today's metadata may still require it
    required("tfdist", found)
    del found["tensorflow"], found["tfdist"]
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."}:
            (packages / top).unlink(missing_ok=True)
            (packages / top).symlink_to(distribution.locate_file(top))

    def run(*arguments, **environ):
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{packages}", **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_the_environment_has_no_tensorflow(python):
    assert "No module named 'tensorflow'" in python("-c", "import tensorflow").stderr


def test_doctor_says_how_to_install_it(python):
    ended = python("-m", "tfdist", "doctor", "--json")
    report = json.loads(ended.stdout)
    (finding,) = [each for each in report["findings"] if each["check"] == "versions.absent"]
    assert finding["what"] == f"TensorFlow is not installed for {sys.executable}"
    assert finding["fix"].startswith("pip install 'tensorflow>=")
    assert (ended.returncode, ended.stderr) == (1, "")


def test_compose_writes_a_file(python):
    ended = python("-m", "tfdist", "compose", "train.py")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "worker-1:" in ended.stdout


def test_status_reads_a_run_folder(python, folder):
    run = folder("run")
    run.folder("worker:0", 1)
    run.started("worker:0", 1, os.getpid())
    ended = python("-m", "tfdist", "status", str(run.path))
    assert "worker:0" in ended.stdout, ended.stderr
    assert "Traceback" not in ended.stderr


def test_stacks_shows_any_process(python):
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        ended = python("-m", "tfdist", "stacks", "--pid", str(other.pid))
        other.kill()
    assert f"pid {other.pid}" in ended.stdout, ended.stderr
    assert "Traceback" not in ended.stderr
