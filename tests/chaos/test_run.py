"""`tfdist run`: its output and its exit codes."""

import json

import pytest

from tests.launches import MEET, run


def test_lines_are_prefixed_and_json_is_alone_on_standard_output(script):
    ended = run("--ps", 1, "--workers", 2, "--json", script(MEET), "--", "on", "time")
    result = json.loads(ended.stdout)
    assert (ended.returncode, result["exit_code"], result["failure"]) == (0, 0, None)
    # On a busy machine the launcher prints the progress of the tasks every 10 s.
    lines = [line for line in ended.stderr.splitlines() if line.startswith("[")]
    assert lines == ["[worker:0] all met on time"]


def test_a_failed_task_is_shown_with_one_traceback_and_exit_code_70(script):
    ended = run(script(MEET + "        raise ValueError('bad record')\n"))  # the chief alone
    assert ended.returncode == 70
    assert ended.stderr.count("ValueError: bad record") == 1
    assert "worker:" in ended.stderr


@pytest.mark.parametrize(("code", "at_end"), [("2", 2), ("'no data'", 1)])
def test_the_exit_code_of_a_script_is_said_and_never_taken_for_one_of_tfdist(script, code, at_end):
    ended = run("--workers", 1, script(f"import sys\nsys.exit({code})"))
    assert ended.returncode == 70
    assert (
        ended.stderr.splitlines()[-1]
        == f"tfdist: exit code 70, because worker:0 ended with exit code {at_end}"
    )


def test_wrong_input_of_the_script_is_one_line_and_exit_code_2(script):
    ended = run(
        script("import tfdist\nraise tfdist.ConfigError('--rate', -1, 'must be at least 0')")
    )
    assert ended.returncode == 2
    # On a busy machine the launcher first reports which tasks are not ready.
    assert ended.stderr.splitlines()[-1] == "tfdist: --rate: got -1; must be at least 0"
    assert "Traceback" not in ended.stderr


def test_an_evaluator_that_calls_run_task_is_named(script):
    job = script("import tfdist\ntfdist.run_task(lambda task, target: None)")
    ended = run("--evaluator", job)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "tfdist: task: got 'evaluator:0'; run_task does not evaluate; call your own evaluation "
        "instead of it"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--workers", "0", __file__], "tfdist: --workers: got 0; must be at least 1\n"),
        (["--ps", "-1", __file__], "tfdist: --ps: got -1; must be at least 0\n"),
        (
            ["--ps", "0", "--coordinator", __file__],
            "tfdist: --ps: got 0; must be at least 1 with --coordinator\n",
        ),
        (["nowhere.py"], "tfdist: script: got 'nowhere.py'; the file does not exist\n"),
        (["/tmp"], "tfdist: script: got '/tmp'; must be a file, and is a folder\n"),
        (
            ["--log-dir", "/dev/null", __file__],
            "tfdist: --log-dir: got '/dev/null'; cannot create this folder: File exists\n",
        ),
        (["--restart", "-1", __file__], "tfdist: --restart: got -1; must be at least 0\n"),
        (
            ["--grace", "-1", __file__],
            "tfdist: --grace: got -1.0; must be a number of seconds, at least 0\n",
        ),
        (["--timeout", "0", __file__], "tfdist: --timeout: got 0.0; must be more than 0 seconds\n"),
        *(
            (
                ["--stall-timeout", value, __file__],
                f"tfdist: --stall-timeout: got {value}; must be more than 0 seconds\n",
            )
            for value in ("0.0", "-1.0", "nan")
        ),
        (
            ["--classic-flags", "--chief", __file__],
            "tfdist: --chief cannot be combined with --classic-flags\n",
        ),
        (
            ["--coordinator", "--no-chief", __file__],
            "tfdist: --no-chief cannot be combined with --coordinator\n",
        ),
    ],
)
def test_wrong_input_of_the_launcher_is_one_line_and_exit_code_2(arguments, line):
    ended = run(*arguments)
    assert (ended.returncode, ended.stderr, ended.stdout) == (2, line, "")


def test_a_module_runs_as_under_python_m(tmp_path, monkeypatch):
    package = tmp_path / "trainer"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.py").write_text("SIZE = 7\n")
    (package / "task.py").write_text(
        "import sys\nfrom . import model\nprint(__name__, model.SIZE, sys.argv[1:])\n"
    )
    monkeypatch.chdir(tmp_path)
    alone = ["--ps", 0, "--workers", 1, "-m"]
    ended = run(*alone, "trainer.task", "--epochs", "3")
    assert (ended.returncode, ended.stdout) == (0, "[worker:0] __main__ 7 ['--epochs', '3']\n")
    for name in ("trainer.tusk", "treiner.task"):
        ended = run(*alone, name)
        assert ended.returncode == 2
        assert f"-m: got '{name}'; there is no such module in {tmp_path}" in ended.stderr


def test_a_module_in_the_scripts_folder_shadows_one_that_tensorflow_imports(script, tmp_path):
    (tmp_path / "six.py").write_text("SIZE = 6\n")  # tensorflow has imported its own
    (tmp_path / "wrapt").mkdir()  # without __init__.py, so it shadows nothing
    text = "import six, wrapt\nprint(six.SIZE, wrapt.__file__ is not None)\n"
    ended = run("--ps", 0, "--workers", 1, script(text))
    assert (ended.returncode, ended.stdout) == (0, "[worker:0] 6 True\n"), ended.stderr


def test_the_last_lines_of_a_task_that_ends_without_a_traceback_are_repeated(script):
    text = "import os, sys\nprint('no more descriptors', file=sys.stderr, flush=True)\nos.abort()\n"
    ended = run("--ps", 0, "--workers", 1, script(text))
    assert ended.returncode == 70
    assert (
        "tfdist: worker:0 was killed by signal 6 (SIGABRT)\n"
        "it printed no traceback; the end of its standard error:\n"
        "  no more descriptors\n"
    ) in ended.stderr


@pytest.mark.parametrize(
    "config", ["{}", "{oops", '{"cluster": {}, "task": {"type": "master", "index": 0}}']
)
def test_a_tf_config_without_a_cluster_is_ignored(script, monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    ended = run("--ps", 0, "--workers", 1, script("print('ok')"))
    assert (ended.returncode, ended.stdout) == (0, "[worker:0] ok\n"), ended.stderr
    assert "TF_CONFIG is set, but makes this process no task of a cluster" in ended.stderr


def test_a_task_may_open_as_many_files_as_the_hard_limit_allows(script):
    text = "import resource as r\nsoft, hard = r.getrlimit(r.RLIMIT_NOFILE)\nprint(hard - soft)"
    assert run("--ps", 0, "--workers", 1, script(text)).stdout == "[worker:0] 0\n"


def test_a_loop_over_the_generations_of_a_barrier_survives_a_restart(script, tmp_path):
    ended = run(
        *("--workers", 2, "--restart", 1),
        script("""
import os, signal, sys, tfdist
task = tfdist.Task.from_env()
with tfdist.worker_server(task), tfdist.Barrier(task, "epoch_end", timeout=50) as epoch_end:
    while epoch_end.generation <= 4:
        is_third = task.name == "worker:1" and epoch_end.generation == 3
        if is_third and not os.path.exists(sys.argv[1]):
            open(sys.argv[1], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        epoch_end.wait()
"""),
        tmp_path / "killed",
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "killed").exists()
