"""`tfdist node`: how it runs a script, exit codes, and signals."""

import json
import os
import signal
import subprocess
import sys

import pytest

# Without a ps nothing is reported at the end, so nothing needs TensorFlow.
ALONE = {"cluster": {"worker": ["worker-0:2222"]}, "task": {"type": "worker", "index": 0}}


def start(*arguments, tf_config=ALONE, **options):
    environ = {name: value for name, value in os.environ.items() if "proxy" not in name}
    if tf_config is not None:
        environ["TF_CONFIG"] = json.dumps(tf_config)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-m", "tfdist", "node", *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=environ, **streams)


def node(*arguments, **options):
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_script_runs_as_the_main_program_with_its_arguments(script):
    job = script(
        "import os, sys, tfdist\n"
        "print(__name__, sys.argv, tfdist.Task.from_env().name, os.environ['no_grpc_proxy'])"
    )
    code, out, err = node(job, "--", "--rate", "0.1")
    assert (code, err) == (0, "")
    assert out == f"__main__ {[str(job), '--rate', '0.1']} worker:0 worker-0\n"


@pytest.mark.parametrize(("options", "noise"), [([], ""), (["-vv"], "noise\n")])
def test_the_import_of_tensorflow_is_quiet(script, options, noise):
    job = script("import sys, tensorflow\nprint(tensorflow.here)\nprint('own', file=sys.stderr)")
    # A module in TensorFlow's place, which is imported quickly.
    fake = job.with_name("tensorflow.py")
    fake.write_text("import os\nos.write(2, b'noise\\n')\nhere = __name__")
    assert node(*options, job) == (0, "tensorflow\n", f"{noise}own\n")
    fake.write_text("raise ImportError('broken')")
    code, _, err = node(*options, job)
    assert code == 70
    assert err.endswith("ImportError: broken\n")


def test_classic_flags_follow_the_arguments(script):
    job = script("import sys; print(*sys.argv[1:])")
    code, out, _ = node("--classic-flags", job, "a")
    assert code == 0
    assert out == "a --ps_hosts= --worker_hosts=worker-0:2222 --job_name=worker --task_index=0\n"


@pytest.mark.parametrize(
    ("end", "code", "last_line"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no data')", 1, "no data"),
        ("raise ValueError('boom')", 70, "ValueError: boom"),
        ("tfdist.Task('ps', 1, {})", 2, "tfdist: task.index: got 1; the cluster has 0 ps task(s)"),
        (
            "tfdist.run_task(lambda task, target: tfdist.Task('ps', 1, {}))",
            2,
            "job.py: task.index: got 1",
        ),
    ],
)
def test_the_exit_code_shows_how_the_script_ended(script, end, code, last_line):
    ended, out, err = node(script(f"import sys, tfdist\nprint('started')\n{end}"))
    assert (ended, out) == (code, "started\n")
    assert (err.splitlines() or [""])[-1].startswith(last_line)
    assert ("Traceback" in err) == (code == 70)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_node_that_is_blocked_in_c_code(script, number, code):
    # Runs no Python signal handler, like a blocked call of TensorFlow.
    blocked = script(
        "import ctypes\nprint('ready')\nlibc = ctypes.CDLL(None)\nwhile True: libc.poll(0, 0, -1)"
    )
    with start(blocked) as process:
        assert process.stdout.readline() == "ready\n"  # though standard output is a pipe
        process.send_signal(number)
        assert process.wait(timeout=5) == code


def test_a_signal_handler_of_the_script_is_kept(script):
    own = script(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready')\nsignal.pause()"
    )
    with start(own) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=5) == 5


def test_a_signal_to_a_forked_child_does_not_end_its_parent(script):
    forks = script(
        "import multiprocessing, time\n"
        "for _ in range(3):\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "    child.start()\n    child.terminate()\n    child.join(10)\n    print(child.exitcode)"
    )
    code, out, _ = node(forks)
    assert (code, out) == (0, "-15\n" * 3)


def test_a_node_ends_silently_when_its_output_has_no_reader(script):
    read_end, write_end = os.pipe()
    with start(script("print('1')\nwhile True: print('2')"), stdout=write_end) as process:
        os.close(write_end)
        os.close(read_end)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")
