"""The table of `tfdist status`: the progress of a trainer, and the attempts of a task."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from tfdist.cli import main
from tfdist.runs.folder import PROGRESS_FILE
from tfdist.runs.outcome import Outcome


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return folder("tfdist-a")


def begin(run, attempt=1):
    folder = Path(run.folder("worker:0", attempt))
    run.started("worker:0", attempt, os.getpid())
    return folder


def note(folder, seconds_ago):
    file = folder / PROGRESS_FILE
    file.write_text(json.dumps({"state": "epoch 1 of 3", "done": 12, "total": 100}))
    os.utime(file, (time.time() - seconds_ago,) * 2)


def table(run, capsys):
    """Its header and its row."""
    main(["status", str(run.path)])
    _, header, row = capsys.readouterr().out.splitlines()
    return header, row


def cell(header, row, column):
    """The text below a left-aligned title."""
    return row[header.index(column) :].split("  ")[0].strip()


def seconds_ago(progress):
    return int(re.fullmatch(r"epoch 1 of 3: 12 of 100, (\d+) s ago", progress)[1])


def test_progress_is_shown_with_its_age(run, capsys):
    note(begin(run), seconds_ago=25)
    assert 25 <= seconds_ago(cell(*table(run, capsys), "progress")) < 60


def test_a_row_in_a_pipe_is_one_line(run, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    folder = begin(run)
    text = json.dumps({"state": "a long name " * 12, "done": 12, "total": 100})
    (folder / PROGRESS_FILE).write_text(text)
    _, row = table(run, capsys)
    assert "12 of 100" in row


def test_a_narrow_terminal_breaks_no_word(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    note(begin(run), seconds_ago=25)
    main(["status", str(run.path)])
    words = capsys.readouterr().out.split()
    assert {"worker:0", "progress", "listens", "epoch", "100,", str(os.getpid())} <= set(words)


def test_without_notes_the_progress_is_empty(run, capsys):
    begin(run)
    assert cell(*table(run, capsys), "progress") == ""


def test_without_a_restart_there_is_no_column_of_attempts(run, capsys):
    begin(run)
    header, row = table(run, capsys)
    assert header.split()[:3] == ["task", "pid", "state"]
    assert row.split()[:3] == ["worker:0", str(os.getpid()), "runs"]


def test_the_last_attempt_of_a_restarted_task_is_shown(run, capsys):
    note(begin(run), seconds_ago=500)
    run.ended("worker:0", 1, Outcome(exit_code=1))
    note(begin(run, attempt=2), seconds_ago=0)
    header, row = table(run, capsys)
    assert header.split()[:4] == ["task", "attempt", "pid", "state"]
    assert row.split()[:4] == ["worker:0", "2", str(os.getpid()), "runs"]
    assert seconds_ago(cell(header, row, "progress")) < 60


def test_the_attempt_of_a_task_that_has_not_started_is_empty(run, capsys):
    about = json.loads((run.path / "run.json").read_text())
    about["tasks"].append("worker:1")
    (run.path / "run.json").write_text(json.dumps(about))
    begin(run)
    begin(run, attempt=2)
    main(["status", str(run.path)])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["worker:1", "not", "started"]
