"""TensorFlow takes seconds to import, so nothing pays for it that does not use it."""

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
    "help": HELP,
}


def loads_tensorflow(code: str) -> bool:
    """Whether a fresh process has TensorFlow loaded after `code`; raises if `code` fails."""
    end = "\nimport sys\nprint('loaded:', 'tensorflow' in sys.modules)"
    child = subprocess.run(
        [sys.executable, "-c", code + end], capture_output=True, text=True, timeout=30, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.endswith("loaded: True\n")


@pytest.mark.parametrize("code", LAZY.values(), ids=LAZY)
def test_tensorflow_stays_out(code):
    assert not loads_tensorflow(code)


def test_a_loaded_tensorflow_is_seen():
    assert loads_tensorflow("import sys; sys.modules['tensorflow'] = sys")


def test_a_failing_child_is_not_taken_for_a_lazy_one():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        loads_tensorflow("1 / 0")


def test_the_command_starts_no_thread_before_it_may_isolate_itself():
    # Such as numpy does: a process with threads cannot enter a user namespace.
    code = "import os, tfdist.cli\nprint(len(os.listdir('/proc/self/task')))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "1\n"
