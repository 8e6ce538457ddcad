"""Every case of the lab has a broken and a fixed job, both short, and a line on its page."""

import ast
from pathlib import Path

import pytest

from tfdist import ConfigError
from tfdist.cli import main
from tfdist.cli import repro as command
from tfdist.diagnosis.evidence import Evidence
from tfdist.diagnosis.verdict import Name, Verdict
from tfdist.repro.lab import Played
from tfdist.repro.matrix import CASES, T23846, find
from tfdist.repro.series import grid, size_flags

ROOT = Path(__file__).parents[2]
MOST_LINES = 60  # fits on a screen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_has_both_jobs_and_a_line_on_its_page(case):
    source = ROOT / "tfdist" / "repro" / "scenarios" / f"{case.module}.py"
    found = {
        node.name: node.end_lineno - node.lineno
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    name = case.name.partition("/")[2].replace("-", "_")
    assert found[name] <= MOST_LINES
    assert found[f"{name}_fixed"] <= MOST_LINES
    page = (ROOT / "docs" / "hangs" / f"{case.module}.md").read_text("utf-8")
    assert f"`{case.name}`" in page
    assert all(name.value in page or len(case.expects) > 1 for name in case.expects)


def test_case_names_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert find("t23846") is T23846


def test_each_story_is_a_few_plain_sentences():
    for text in (text for case in CASES for text in (case.about, case.fix)):
        assert text.endswith("."), text
        assert len(text) <= 240, text


def test_a_wrong_case_name_suggests_the_nearest_ones():
    with pytest.raises(ConfigError) as caught:
        find("sync/worker-shrt")
    assert caught.value.field == "CASE"
    assert "did you mean sync/worker-short" in str(caught.value)
    with pytest.raises(ConfigError, match="tfdist repro list"):
        find("none")


def test_a_grid_has_each_size_once_and_scales_its_examples():
    cases = grid(
        T23846, ps=[1, 2], workers=[4, 8], inter_op=[1], iterator_on_ps=[False, True], epochs=25
    )
    sizes = {
        (case.shape.num_ps, case.shape.num_workers, case.settings.iterator_on_ps) for case in cases
    }
    assert len(cases) == len(sizes) == 8
    assert {case.examples for case in cases} == {4 * 96 * 25, 8 * 96 * 25}
    size = "--ps 1 --workers 4 --inter-op 1 --epochs 25 --iterator"
    assert [size_flags(case) for case in cases[:2]] == [f"{size} local", f"{size} ps"]
    assert size_flags(find("sync/worker-short")) == ""


def test_the_list_wraps_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["repro", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if not line.startswith(" ")] == [
        case.name for case in CASES
    ]
    assert all(len(line) <= 40 for line in lines if line.startswith(" "))
    assert [line for line in lines if line.endswith(" ")] == []


@pytest.mark.parametrize("action", ["one size", "many sizes"])
def test_an_unexpected_run_is_shown_with_its_report(action, monkeypatch, tmp_path, capsys):
    def played(case, verdict, number):
        return Played(
            case,
            fixed=False,
            seed=number,
            verdict=Verdict(verdict, (), (f"reason {number}",)),
            evidence=Evidence(()),
            slow=(),
            seconds=1.0,
            diagnosed_secs=1.0,
            reported_after_secs=None,
            folder=tmp_path / str(number),
        )

    def play_often(case, lab, folder, **options):
        return [played(case, Name.UNKNOWN, 1), played(case, Name.FINE, 2)]

    monkeypatch.setattr(command, "play_often", play_often)
    monkeypatch.setattr(command, "start_fork_server", lambda: None)
    sizes = ["--ps", "1,2"] if action == "many sizes" else []
    assert main(["repro", "run", "t23846", "--runs", "2", "--out", str(tmp_path), *sizes]) == 1
    output = capsys.readouterr().out
    assert "UNKNOWN" in output
    assert "reason 1" in output
    assert "reason 2" not in output
    assert f"report: {tmp_path / '1'}/" in output
