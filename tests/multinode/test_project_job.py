"""The project's own job, docker/compose.yaml, runs as in its five containers.

In docker too if DOCKER_HOST is set: scripts/with-dockerd scripts/test multinode -k project_job
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tfdist.testing import compose_nodes, poll_until, read_compose

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "docker/compose.yaml", ROOT / "docker/compose.host.yaml"]
BACKENDS = ["netns", *(["compose"] if "DOCKER_HOST" in os.environ else [])]
TASKS = ["ps-0", "ps-1", "chief-0", "worker-0", "worker-1"]
OURS = {
    "TFDIST_CHECKOUT": str(ROOT),
    "TFDIST_VENV": sys.prefix,
    "TFDIST_PYTHON_HOME": sys.base_prefix,
}


@pytest.fixture(params=BACKENDS)
def job(request):
    """Makes the nodes of the project's job, with optional further overrides."""
    if request.param == "compose":
        empty = f"tar --create --files-from {os.devnull} | docker import - tfdist-empty"
        subprocess.run(empty, shell=True, check=True, stdout=subprocess.DEVNULL, timeout=60)
    opened = []

    def make(*overrides):
        environ = {**os.environ, **OURS, "TFDIST_NODES": request.param}
        nodes = compose_nodes([*FILES, *overrides], environ=environ)
        opened.append(nodes)
        return nodes

    yield make
    for nodes in opened:
        nodes.close()


def test_five_nodes_train_and_all_end(job):
    with job() as nodes:
        nodes.up(timeout=60)
        codes = {name: nodes.wait(name, timeout=80) for name in TASKS}
        outputs = {name: nodes.output(name) for name in TASKS}
    assert codes == dict.fromkeys(TASKS, 0), outputs
    epochs = [line for line in outputs["chief-0"].splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 5, outputs["chief-0"]
    assert all(": 10000 examples, " in line for line in epochs)
    found = re.search(r"y = (\S+) x (\S+)$", epochs[-1])
    assert found is not None, epochs[-1]
    # Asynchronous updates end near the line, at another point in each run.
    assert [float(number) for number in found.groups()] == pytest.approx([3.0, -2.0], abs=0.2)
    assert "ps:0 serves at ps-0:2222" in outputs["ps-0"]


def test_each_node_gets_its_tf_config_unchanged(job, tmp_path):
    """On every back end, so they are equal on both."""
    override = tmp_path / "override.yaml"
    names = "".join(f"  {name}: {{command: [printenv, TF_CONFIG]}}\n" for name in TASKS)
    override.write_text(f"services:\n{names}")
    with job(override) as nodes:
        nodes.up(timeout=60)
        assert all(nodes.wait(name, timeout=30) == 0 for name in TASKS)
        outputs = {name: nodes.output(name) for name in TASKS}
    services = read_compose(FILES, environ=OURS).services
    for name in TASKS:
        assert outputs[name] == services[name].environment["TF_CONFIG"] + "\n"


def test_no_port_of_the_job_is_open_to_the_outside():
    environ = {**os.environ, **OURS, "TFDIST_NODES": "netns"}
    with compose_nodes(FILES, environ=environ) as nodes:
        nodes.up(timeout=60)
        inside = "import socket; socket.create_connection(('ps-0', 2222), 30)"

        def serves():
            ask = nodes.network.start("worker-0", [sys.executable, "-I", "-c", inside])
            return ask.wait(40) == 0

        poll_until(serves, "ps-0 serves", timeout=60)
        for name in TASKS:
            with socket.socket() as outside:
                outside.settimeout(0.5)
                assert outside.connect_ex((nodes.network.address(name), 2222)) != 0
