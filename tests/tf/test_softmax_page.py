"""The worked example of docs/softmax.md prints the numbers that the page states."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/softmax.md"


def test_the_worked_example_prints_what_the_page_says(capsys):
    parts = PAGE.read_text("utf-8").split("```")
    prose, blocks = parts[::2], parts[1::2]
    [place] = [number for number, block in enumerate(blocks) if "the_and_sat" in block]
    program = blocks[place].removeprefix("python\n")
    printed = blocks[place + 1].removeprefix("text\n")
    exec(compile(program, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == printed
    numbers = re.findall(r"[\d.]+$", printed, re.M)
    assert len(numbers) == 5
    for number in numbers:
        assert any(number in part for part in prose), number
