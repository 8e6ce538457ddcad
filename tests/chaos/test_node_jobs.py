"""Jobs whose tasks are each a `tfdist node`, as on several machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfdist.cluster.ports import HeldPorts
from tfdist.cluster.shape import Shape

ROOT = Path(__file__).parents[2]
SECS = 80


def run_job(shape, *arguments):
    """Runs a node for each task; returns their exit codes and standard errors by name."""
    with HeldPorts(shape.num_servers) as held:
        tasks = shape.tasks([f"localhost:{port}" for port in held.ports])
        nodes = {}
        try:
            for task in tasks:
                environ = {**os.environ, "TF_CONFIG": task.to_env(), "TF_GRPC_REUSE_PORT": "1"}
                nodes[task.name] = subprocess.Popen(
                    [sys.executable, "-m", "tfdist", "node", *map(str, arguments)],
                    cwd=ROOT,
                    env=environ,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            ends = {name: node.communicate(timeout=SECS)[1] for name, node in nodes.items()}
            return {name: (nodes[name].returncode, error) for name, error in ends.items()}
        finally:
            for node in nodes.values():
                node.kill()
                node.wait()


MIXED = """\
import os
import tensorflow as tf
import tfdist

task = tfdist.Task.from_env()
if task.is_chief:
    with tfdist.worker_server(task) as target:
        pass
else:  # plain TensorFlow, which does not report to the ps
    server = tf.distribute.Server(task.cluster_spec, task.task_type, task.task_index)
    filters = tf.compat.v1.ConfigProto(device_filters=task.device_filters)
    with tf.Graph().as_default(), tf.compat.v1.Session(server.target, config=filters) as session:
        with tf.device("/job:ps/task:0"):
            one = tf.constant(1)
        assert session.run(one) == 1
"""


def test_a_ps_exits_when_all_trainers_are_done_also_with_plain_tensorflow(script):
    ends = run_job(Shape(num_ps=1, num_workers=2), script(MIXED))
    assert {name: code for name, (code, _) in ends.items()} == dict.fromkeys(ends, 0), ends
    assert ends["ps:0"][1].startswith("tfdist: ps:0 serves at localhost:")
    assert ends["worker:0"][1] == ""


def test_all_servers_exit_when_the_coordinator_is_done():
    public = Path(__file__).parent / "public/parameter_server_loop.py"
    ends = run_job(Shape(num_ps=1, num_workers=2, coordinator=True), "--coordinator", public)
    assert {name: code for name, (code, _) in ends.items()} == dict.fromkeys(ends, 0), ends


def test_a_serving_ps_ends_on_sigterm(script):
    with HeldPorts(2) as held:
        ps, _ = Shape(1, 1).tasks([f"localhost:{port}" for port in held.ports])
        node = subprocess.Popen(
            [sys.executable, "-m", "tfdist", "node", str(script(""))],
            cwd=ROOT,
            env={**os.environ, "TF_CONFIG": ps.to_env(), "TF_GRPC_REUSE_PORT": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        with node:
            assert "serves" in node.stderr.readline()
            node.terminate()
            try:
                assert node.wait(timeout=5) == 143
            except subprocess.TimeoutExpired:
                node.kill()
                pytest.fail("the ps still serves")
