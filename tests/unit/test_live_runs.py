"""Running jobs are found by folders and links in the temporary directory."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfdist.errors import ConfigError
from tfdist.runs.folder import RunFolder
from tfdist.runs.live import chosen_run, linked, live_runs
from tfdist.task import Task


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """The folder of a run outside the temporary directory."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    path = tmp_path / "logs" / "20300101-a"
    path.mkdir(parents=True)
    task = Task("worker", 0, {"worker": ["localhost:1"]})
    RunFolder(path).create([task], [task])
    return path


def found():
    return [run.path for run in live_runs()]


def links(logs):
    return list((logs.parents[1] / "tmp").iterdir())


def test_a_run_outside_the_temporary_directory_is_found_while_it_is_linked(logs):
    assert found() == []
    with linked(str(logs)):
        assert found() == [logs]
        assert chosen_run(None).path == logs
        [link] = links(logs)
        assert link.name == "tfdist-20300101-a"
    assert (found(), links(logs)) == ([], [])


def test_a_run_with_a_relative_path_is_found_from_any_directory(logs, monkeypatch):
    monkeypatch.chdir(logs.parent)
    with linked(os.path.basename(logs)):
        monkeypatch.chdir("/")
        assert found() == [logs]


def test_the_link_of_a_killed_launcher_is_ignored(logs):
    about = json.loads((logs / "run.json").read_text())
    about["launcher"]["ticks"] -= 1
    (logs / "run.json").write_text(json.dumps(about))
    with linked(str(logs)):
        assert found() == []
        shutil.rmtree(logs)
        assert found() == []
        with pytest.raises(ConfigError, match="no running job of yours"):
            chosen_run(None)


def test_a_link_that_was_removed_meanwhile_is_no_error(logs):
    with linked(str(logs)):
        links(logs)[0].unlink()


@pytest.mark.parametrize("text", ["", '{"x": 1}', "[]"])
def test_an_unreadable_run_is_skipped_and_named(logs, capsys, text):
    broken = logs.parents[1] / "tmp" / "tfdist-old" / "run.json"
    broken.parent.mkdir()
    broken.write_text(text)
    with linked(str(logs)):
        assert found() == [logs]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tfdist: skipped {broken}: ")


def test_the_link_of_another_user_is_ignored(logs, monkeypatch):
    with linked(str(logs)):
        other = SimpleNamespace(st_uid=os.getuid() + 1)
        monkeypatch.setattr(Path, "lstat", lambda path: other)
        assert found() == []


def test_other_files_with_such_a_name_are_ignored(logs, capsys):
    folder = logs.parents[1] / "tmp"
    (folder / "tfdist-file").touch()
    (folder / "tfdist-gone").symlink_to("gone")
    (folder / "tfdist-without-a-run").mkdir()
    with linked(str(logs)):
        assert found() == [logs]
    assert capsys.readouterr().err == ""
    (folder / "tfdist-circle").symlink_to("tfdist-circle")
    assert found() == []
    [line] = capsys.readouterr().err.splitlines()
    assert "tfdist-circle" in line


def test_a_link_that_cannot_be_made_gives_the_reason(logs):
    with linked(str(logs)) as complaint, linked(str(logs)) as second:
        assert (complaint, "File exists" in second) == (None, True)
        assert found() == [logs]
    assert links(logs) == []
