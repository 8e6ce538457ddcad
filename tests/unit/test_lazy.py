"""TensorFlow takes seconds to import and is the user's own: only what needs it imports it."""

import subprocess
import sys

import pytest

HELP = """
import sys
from tfdist.cli import main
sys.argv = ["tfdist", "--help"]
try:
    sys.exit(main())
except SystemExit as end:
    assert not end.code, end.code
"""

# The pytest plugin is loaded by every pytest run where tfdist is installed.
LAZY = {
    "package": "import tfdist",
    "plugin": "import tfdist.testing",
    "rules of the barrier": "import tfdist.barrier.rules",
    "plan": "from tfdist.cli import main; main(['plan', '--preset', 'gpt2-124m'])",
    "help": HELP,
}

INSTALL = (
    "Install the build that suits your machine, for example: pip install 'tensorflow>=2.21,<3'"
)


def python(code: str, *, has_tensorflow: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh process, with TensorFlow or as if none were installed."""
    absent = "" if has_tensorflow else "import sys; sys.modules['tensorflow'] = None\n"
    return subprocess.run(
        [sys.executable, "-c", absent + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command `tfdist` without TensorFlow."""
    code = f"from tfdist.cli import main\nsys.exit(main({list(arguments)!r}))"
    return python(code, has_tensorflow=False)


def loads_tensorflow(code: str) -> bool:
    """Whether a fresh process has TensorFlow loaded after `code`; raises if `code` fails."""
    child = python(code + "\nimport sys\nprint('loaded:', 'tensorflow' in sys.modules)")
    assert child.returncode == 0, child.stderr
    return child.stdout.endswith("loaded: True\n")


@pytest.mark.parametrize("code", LAZY.values(), ids=LAZY)
def test_tensorflow_stays_out(code):
    assert not loads_tensorflow(code)


def test_a_loaded_tensorflow_is_seen():
    assert loads_tensorflow("import sys; sys.modules['tensorflow'] = sys")


def test_a_child_that_fails_is_an_error():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        loads_tensorflow("1 / 0")


def test_without_tensorflow_a_name_that_needs_it_says_what_to_install():
    names = ["tfdist.Barrier", "tfdist.train.session", "tfdist.data.endless_batches"]
    uses = [*names, "tfdist.local_cluster()"]
    tries = [f"try: {use}\nexcept ModuleNotFoundError as error: print(error)\n" for use in uses]
    ended = python("import tfdist\n" + "".join(tries), has_tensorflow=False)
    missing = f"needs TensorFlow, and this Python environment has none. {INSTALL}"
    users = [*names, "tfdist.local_cluster"]
    assert ended.stdout.splitlines() == [f"{user} {missing}" for user in users], ended.stderr


def test_without_tensorflow_the_other_names_work():
    names = "tfdist.Task, tfdist.Progress, tfdist.TaskFailed, tfdist.Watchdog, tfdist.data.Ledger"
    ended = python(f"import tfdist\n{names}, tfdist.testing.Network", has_tensorflow=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("user", "arguments"),
    [
        ("tfdist run", ["run", __file__]),
        ("tfdist repro", ["repro", "run", "t23846/end-of-epoch"]),
    ],
)
def test_without_tensorflow_a_command_that_needs_it_ends_with_one_line(user, arguments):
    ended = command(*arguments)
    wanted = f"tfdist: {user} needs TensorFlow, and this Python environment has none. {INSTALL}\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", wanted)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["doctor"], "tf_config.absent"),
        (["compose", __file__], "services:"),
        (["stacks", "--pid", "1"], "pid 1"),
        (["repro", "list"], "t23846/end-of-epoch"),
    ],
)
def test_without_tensorflow_the_other_commands_work(arguments, shown):
    ended = command(*arguments)
    assert shown in ended.stdout, ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_command_starts_no_thread_before_it_may_isolate_itself():
    # numpy starts threads on import, and a process with threads cannot enter a user namespace.
    ended = python("import os, tfdist.cli\nprint(len(os.listdir('/proc/self/task')))")
    assert ended.stdout == "1\n", ended.stderr
