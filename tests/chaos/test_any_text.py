"""Whole runs of scripts with any bytes in their name, output, errors and progress.

To replay a seed: `scripts/test chaos -k "any_text and [17]"`.
"""

import os
import random
import subprocess
import sys

import pytest

SIGNS = [
    b"\x1b]0;title\x07",
    b"\x1b[2J",
    b"\r",
    b"\n",
    b"\0",
    b"[red]",
    b"[/]",
    b"%s",
    b"{}",
    b"\\",
]
JOB = """\
import os, sys
import tfdist
for piece in {output!r}:
    os.write(1, piece)
    os.write(2, piece)
class Odd(Exception):
    pass
Odd.__name__ = {name!r}
tfdist.Progress.from_env().update({state!r}, 1, 2)
if {fails!r}:
    raise Odd({text!r})
"""


def any_bytes(chance, size=30):
    """Some random bytes, some of the bytes that have a meaning for a terminal or a library."""
    parts = [
        chance.choice(SIGNS) if chance.random() < 0.3 else chance.randbytes(chance.randrange(8))
        for _ in range(chance.randrange(1, size))
    ]
    return b"".join(parts)


def any_text(chance):
    return any_bytes(chance).decode(errors=chance.choice(["surrogateescape", "replace"]))


def any_name(chance):
    """A name of a file, which does not begin with a hyphen."""
    return b"x" + any_bytes(chance).replace(b"/", b"").replace(b"\0", b"")[:100]


def tfdist(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfdist", *arguments], capture_output=True, check=False, timeout=60
    )


@pytest.mark.rotates(2)
@pytest.mark.parametrize("seed", range(60))
def test_no_tool_fails_at_any_text_of_a_script(tmp_path, seed):
    chance = random.Random(f"text {seed}")
    folder = os.path.join(os.fsencode(tmp_path), any_name(chance))
    os.mkdir(folder)
    script = os.path.join(folder, any_name(chance) + b".py")
    fails = chance.random() < 0.5
    with open(script, "w") as file:
        file.write(
            JOB.format(
                output=[any_bytes(chance, 200) for _ in range(5)],
                name=any_bytes(chance).decode(errors="replace").replace("\0", ""),
                state=any_text(chance),
                text=any_text(chance),
                fails=fails,
            )
        )
    logs = os.path.join(folder, b"logs")
    ended = tfdist("run", "--ps", "0", "--workers", "1", "--log-dir", logs, script)
    assert ended.returncode == (70 if fails else 0), ended.stderr
    [run] = [os.path.join(logs, name) for name in os.listdir(logs)]
    outputs = [ended.stdout, ended.stderr]
    for command in (["status"], ["status", "--json"], ["stacks"], ["stacks", "--verdict"]):
        asked = tfdist(*command, run)
        assert asked.returncode in (0, 1), asked.stderr
        outputs += [asked.stdout, asked.stderr]
    package = os.path.join(b"", b"tfdist", b"cli")
    for output in outputs:
        assert package not in output, output  # in a frame of a traceback
        assert b"\x1b]0;" not in output
        assert b"\x1b[2J" not in output
