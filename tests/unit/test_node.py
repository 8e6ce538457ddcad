"""`tfdist node` before the script runs: wrong input, environment."""

import json

import pytest

from tfdist.cli import main
from tfdist.cluster.script import node_environment
from tfdist.task import Task

ALONE = {"cluster": {"worker": ["worker-0:2222"]}, "task": {"type": "worker", "index": 0}}


@pytest.mark.parametrize(
    ("arguments", "tf_config", "line"),
    [
        (["gone.py"], ALONE, "script: got 'gone.py'; the file does not exist"),
        (["gone.py"], None, "TF_CONFIG: missing; set it for each task"),
        (["gone.py"], {"cluster": {}}, "TF_CONFIG.task: missing; must be an object"),
        (["--coordinator", "gone.py"], ALONE, "TF_CONFIG.cluster"),
        (
            ["--classic-flags", "gone.py"],
            {**ALONE, "task": {"type": "evaluator", "index": 0}},
            "TF_CONFIG: got ['evaluator', 'worker']; must contain only ps and workers",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, tf_config, line):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if tf_config is not None:
        monkeypatch.setenv("TF_CONFIG", json.dumps(tf_config))
    assert main(["node", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"tfdist: {line}")


def test_calls_between_tasks_bypass_a_proxy():
    task = Task("worker", 0, {"ps": ["ps-0:2222", "[::1]:2222"], "worker": ["worker-0:2222"]})
    found = node_environment(task, {"no_proxy": "a,b"})
    assert found == {"GRPC_FAIL_FAST": "use_caller", "no_grpc_proxy": "ps-0,::1,worker-0,a,b"}
    assert node_environment(task, {"no_grpc_proxy": "x", "GRPC_FAIL_FAST": "y"}) == {}
