"""A script ends under `tfdist run` and `tfdist node` as it ends under `python`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.launches import run
from tfdist.cluster.ports import HeldPorts

# Returns while a handler, a thread, a pool and an open file have something to write.
WORKS_ON = """
import atexit, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
returned = threading.Event()

def write(name):
    returned.wait(0.5)
    open(os.path.join(sys.argv[1], name), "w").close()

atexit.register(write, "handler")
threading.Thread(target=write, args=["thread"]).start()
ThreadPoolExecutor().submit(write, "pool")
write.file = open(os.path.join(sys.argv[1], "file"), "w")
write.file.write("kept")
"""


def node(script, *arguments, grace=10):
    """Runs the script as the only task of its cluster."""
    cluster = {"worker": ["127.0.0.1:2222"]}
    spec = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})
    return subprocess.run(
        [sys.executable, "-m", "tfdist", "node", "--grace", str(grace), script, *arguments],
        env={**os.environ, "TF_CONFIG": spec},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_alone(script, *arguments, grace=10):
    return run("--ps", 0, "--workers", 1, "--grace", grace, script, *arguments)


LAUNCHERS = pytest.mark.parametrize("launch", [run_alone, node])


@LAUNCHERS
def test_threads_pools_and_exit_handlers_finish_their_work(script, tmp_path, launch):
    folder = tmp_path / "written"
    folder.mkdir()
    ended = launch(script(WORKS_ON), folder)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in folder.iterdir()} == {"handler", "thread", "pool", "file"}
    assert (folder / "file").read_text() == "kept"


@LAUNCHERS
@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("threading.Thread(target=threading.Event().wait, name='upload').start()", "thread upload"),
        ("atexit.register(threading.Event().wait)", "an exit handler"),
    ],
)
def test_after_the_grace_the_task_ends_and_says_what_still_ran(script, launch, code, what):
    ended = launch(script(f"import atexit, threading\n{code}\n"), grace=0.5)
    assert ended.returncode == 0, ended.stderr
    assert f"tfdist: worker:0: {what} still runs 0.5 s after the end of the" in ended.stderr


@LAUNCHERS
@pytest.mark.parametrize(
    "code",
    [
        "import os, sys\nif os.fork() == 0:\n    sys.exit(3)\nos.wait()\nprint('trains on')",
        "import os\nif os.fork() == 0:\n    raise ValueError\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 1\nprint('trains on')",
        "import sys\nprint('trains on')\nsys.stdout.close()",
        "import sys\nprint('trains on', flush=True)\nsys.stdout = sys.stderr = None",
        "import io, sys\n__builtins__.print('trains on', flush=True)\nsys.stdout = io.StringIO()",
    ],
    ids=[
        "forked child",
        "forked child with an error",
        "closed output",
        "no output",
        "replaced output",
    ],
)
def test_odd_ends_that_are_good_under_python_are_good(script, launch, code):
    ended = launch(script(code))
    assert ended.returncode == 0, ended.stderr
    assert "trains on" in ended.stdout


@LAUNCHERS
def test_a_script_that_closes_all_descriptors_ends_with_its_own_exit_code(script, launch):
    ended = launch(script("import os, sys\nos.closerange(3, 3000)\nsys.exit(3)\n"))
    assert ended.returncode == (70 if launch is run_alone else 3), ended.stderr
    assert ("tfdist: worker:0 ended with exit code 3\n" in ended.stderr) == (launch is run_alone)
    assert "Exception" not in ended.stderr
    assert launch(script("import os\nos.closerange(0, 3000)\n")).returncode == 0


@LAUNCHERS
def test_an_error_is_shown_from_the_users_code_on(script, tmp_path, launch):
    (tmp_path / "mylib.py").write_text(
        "class Missing(Exception):\n"
        "    def __init__(self, path, line):\n"
        "        super().__init__(f'{path}:{line} is missing')\n"
    )
    ended = launch(script("import mylib\nraise mylib.Missing('a.csv', 3)\n"))
    assert ended.returncode == 70
    path = tmp_path / "job.py"
    assert (
        "Traceback (most recent call last):\n"
        f'  File "{path}", line 2, in <module>\n'
        "    raise mylib.Missing('a.csv', 3)\n"
        "mylib.Missing: a.csv:3 is missing\n"
    ) in ended.stderr


HOOK = """
import sys, traceback

def hook(kind, error, trace):
    print("hooked", kind.__name__, error, traceback.extract_tb(trace)[0].name)
    raise OSError("disk full")

sys.excepthook = hook
raise ValueError("no data")
"""


@LAUNCHERS
def test_the_program_s_own_hook_gets_the_error(script, launch):
    ended = launch(script(HOOK))
    assert ended.returncode == 70
    assert "hooked ValueError no data <module>\n" in ended.stdout
    assert "tfdist: sys.excepthook has failed: OSError: disk full\n" in ended.stderr
    assert "ValueError: no data\n" in ended.stderr


def test_a_process_in_a_session_of_its_own_does_not_keep_the_task_running(script, tmp_path):
    code = (
        "import subprocess, sys\n"
        "helper = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(str(helper.pid))\n"
    )
    ended = run_alone(script(code), tmp_path / "pid")
    helper = psutil.Process(int((tmp_path / "pid").read_text()))
    try:
        assert ended.returncode == 0, ended.stderr
        assert helper.is_running()  # nothing else ended the run
    finally:
        helper.kill()


@pytest.mark.parametrize("code", ["", "import os\nos.closerange(0, 3000)\n"])
def test_without_a_grace_a_node_still_reports_to_the_ps_that_it_is_done(script, code):
    with HeldPorts(2) as held:
        ps, worker = (f"127.0.0.1:{port}" for port in held.ports)
        cluster = {"ps": [ps], "worker": [worker]}
        server = subprocess.Popen(**node_command(cluster, "ps", 0, script("")))
        try:
            ended = subprocess.run(
                **node_command(cluster, "worker", 0, script(code)), timeout=60, check=False
            )
            assert ended.returncode == 0
            assert server.wait(30) == 0
        finally:
            server.kill()
            server.wait(10)


def node_command(cluster, task_type, index, script):
    spec = json.dumps({"cluster": cluster, "task": {"type": task_type, "index": index}})
    return {
        "args": [sys.executable, "-m", "tfdist", "node", "--grace", "0", script],
        "env": {**os.environ, "TF_CONFIG": spec, "TF_GRPC_REUSE_PORT": "1"},
        "stderr": subprocess.DEVNULL,
    }


@LAUNCHERS
def test_a_hanging_handler_is_ended_also_if_standard_error_is_closed(script, launch):
    code = "import atexit, os, threading\natexit.register(threading.Event().wait)\nos.close(2)\n"
    assert launch(script(code), grace=0.5).returncode == 0


def test_modules_in_the_current_folder_shadow_nothing(script, tmp_path):
    current = tmp_path / "current"
    current.mkdir()
    (current / "socket.py").write_text("raise SystemExit('shadowed')")
    job = script("import os, socket\nprint(os.environ.get('PYTHONSAFEPATH'))")
    tfdist = Path(sys.executable).with_name("tfdist")  # `python -m` has the folder in its path
    ended = subprocess.run(
        [tfdist, "run", "--ps", "0", "--workers", "1", job],
        cwd=current,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "[worker:0] None\n"), ended.stderr
