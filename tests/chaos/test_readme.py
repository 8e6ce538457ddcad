"""The README's code and commands work as they are written."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(command):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=85, check=False
    )


def test_the_readmes_first_barrier_prints_what_it_shows():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    ended = run([sys.executable, "-c", code])
    assert ended.returncode == 0, ended.stderr
    # A busy machine may wake the trainer a little late.
    assert re.sub(r"after 5\.\d s", "after 5.0 s", ended.stdout) == shown


def test_the_readmes_commands_exist_and_take_their_arguments():
    commands = re.findall(r"^(scripts/\w+.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    names = {command.split()[0] for command in commands}
    assert names >= {"scripts/demo", "scripts/test", "scripts/wheel"}
    for command in commands:
        name, *arguments = command.split()
        assert (ROOT / name).is_file(), command
        if name == "scripts/demo":
            # With --help the script still parses and checks the arguments before it.
            ended = run([sys.executable, "examples/movielens.py", *arguments, "--help"])
            assert ended.returncode == 0, ended.stderr
