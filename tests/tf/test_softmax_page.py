"""The programs of docs/softmax.md run, and print what the page shows."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/softmax.md"
# The first one is a job, which another test runs.
PROGRAMS = re.findall(
    r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE.read_text("utf-8"), re.S
)[1:]


@pytest.mark.parametrize(("program", "printed"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_runs(program, printed, capsys):
    exec(compile(program, str(PAGE), "exec"), {})
    if printed:
        assert capsys.readouterr().out == printed


def test_the_prose_has_the_numbers_of_the_worked_example():
    [printed] = [printed for program, printed in PROGRAMS if "the_and_sat" in program]
    prose = PAGE.read_text("utf-8").split("```")[::2]
    numbers = re.findall(r"[\d.]+$", printed, re.M)
    assert len(numbers) == 5
    for number in numbers:
        assert any(number in part for part in prose), number
