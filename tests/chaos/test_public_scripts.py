"""Scripts of plain TensorFlow run unchanged under `tfdist run`."""

import concurrent.futures
import re
import subprocess
import sys
from pathlib import Path

import pytest

PUBLIC = Path(__file__).parent / "public"
PS_OPTIONS = [[], ["--no-builtin-ps"]]


def run(*arguments):
    command = [sys.executable, "-m", "tfdist", "run", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=85,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def run_between_graph(options):
    script = PUBLIC / "between_graph.py"
    return run("--ps", 1, "--workers", 2, "--classic-flags", *options, script, "--steps=150")


def test_between_graph_replication_trains_one_model():
    # In parallel: a worker that starts before its chief is ready sleeps for 30 s (TensorFlow 2.21).
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = list(pool.map(run_between_graph, PS_OPTIONS))
    for ended in runs:
        assert ended.returncode == 0, ended.stderr
        pattern = r"^\[worker:(\d)\] worker \1: (\d+) steps; loss (\S+) to (\S+)$"
        workers = re.findall(pattern, ended.stdout, re.MULTILINE)
        assert sorted(index for index, *_ in workers) == ["0", "1"], ended.stdout
        assert sum(int(steps) for _, steps, _, _ in workers) >= 150
        assert max(float(first) for _, _, first, _ in workers) > 1
        assert all(float(last) < 0.01 for *_, last in workers)


@pytest.mark.parametrize("options", PS_OPTIONS)
def test_a_coordinators_chief_trains_through_its_workers(options):
    script = PUBLIC / "parameter_server_loop.py"
    ended = run("--ps", 1, "--workers", 2, "--coordinator", *options, script)
    assert ended.returncode == 0, ended.stderr
    pattern = r"\[chief:0\] 60 steps; 2 shards; loss (\S+) to (\S+)\n"
    found = re.fullmatch(pattern, ended.stdout)
    assert found, ended.stdout
    first, last = map(float, found.groups())
    assert last < 0.01 < 1 < first


def test_mirrored_workers_take_each_step_together(tmp_path):
    script = PUBLIC / "multi_worker_mirrored_loop.py"
    ended = run("--ps", 0, "--workers", 2, script, "--checkpoints", tmp_path)
    assert ended.returncode == 0, ended.stderr
    pattern = r"\[worker:\d\] worker (\d) of 2: 30 steps; loss (\S+) to (\S+); saved ckpt-1"
    workers = sorted(re.findall(pattern, ended.stdout))
    assert [index for index, *_ in workers] == ["0", "1"], ended.stdout
    assert workers[0][1:] == workers[1][1:]
    first, last = map(float, workers[0][1:])
    assert last < 0.01 < 1 < first
    data = "ckpt-1.data-00000-of-00001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", data, "ckpt-1.index"]
