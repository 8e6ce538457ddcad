"""The project's own compose file is a job that ends well, on hosts of a network, with no docker."""

import os
import sys
from pathlib import Path

from tfdist.testing import compose_nodes

DOCKER = Path(__file__).parents[2] / "docker"


def test_all_its_tasks_end_well_and_leave_checkpoints():
    environ = {
        **os.environ,
        "TFDIST_NODES": "netns",
        "TFDIST_CHECKOUT": str(DOCKER.parent),
        "TFDIST_VENV": sys.prefix,
        "TFDIST_PYTHON_HOME": sys.base_prefix,
    }
    files = [DOCKER / "compose.yaml", DOCKER / "compose.host.yaml"]
    with compose_nodes(files, environ=environ) as nodes:
        nodes.up(30)
        for name in ("chief-0", "worker-0", "worker-1", "ps-0", "ps-1"):
            assert nodes.wait(name, 80) == 0, nodes.output(name)
        assert "epoch 5: 10000 examples" in nodes.output("chief-0")
        assert (nodes.network.shared_here / "checkpoints/line/checkpoint").exists()
