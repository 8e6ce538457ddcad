"""A trainer notes its barriers in files, which `tfdist status` and the launcher read."""

import os

import numpy as np
import pytest

from tfdist import Progress
from tfdist.runs.barrier_notes import BarrierNote, PassMark, note_barrier, noted_barriers, passed_at
from tfdist.runs.progress import Watched
from tfdist.task import PROGRESS_VARIABLE


def launched(folder):
    return {PROGRESS_VARIABLE: str(folder / "progress.json")}


def test_each_barrier_is_noted_once_in_the_order_of_creation(tmp_path):
    notes = [BarrierNote("epoch/end", 3), BarrierNote("a 'b'\n", 2), BarrierNote("epoch/end", 2)]
    for note in [*notes, *notes]:
        note_barrier(note, launched(tmp_path))
    assert noted_barriers(tmp_path) == notes


def test_without_a_launcher_nothing_is_noted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    note_barrier(BarrierNote("end", 2), {})
    PassMark({}).touch()
    assert list(tmp_path.iterdir()) == []
    assert noted_barriers(tmp_path) == []
    assert passed_at(tmp_path) is None


def test_a_pass_is_marked_but_not_too_often(tmp_path):
    now = [0.0]
    mark = PassMark(launched(tmp_path), every_secs=0.1, clock=lambda: now[0])
    assert passed_at(tmp_path) is None
    mark.touch()
    [file] = tmp_path.iterdir()
    for seconds, is_marked in [(0.05, False), (0.15, True), (0.2, False), (0.3, True)]:
        os.utime(file, ns=(7, 7))
        now[0] = seconds
        mark.touch()
        assert (passed_at(tmp_path) != 7) == is_marked


def test_an_incomplete_last_line_is_ignored(tmp_path):
    note_barrier(BarrierNote("end", 2), launched(tmp_path))
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text() + file.read_text()[:-1])
    assert noted_barriers(tmp_path) == [BarrierNote("end", 2)]
    file.write_text(file.read_text()[:5])
    assert noted_barriers(tmp_path) == []


def test_numpy_counts_parties_too(tmp_path):
    note_barrier(BarrierNote("end", np.int64(2)), launched(tmp_path))
    note_barrier(BarrierNote("end", 2), launched(tmp_path))
    assert noted_barriers(tmp_path) == [BarrierNote("end", 2)]


@pytest.mark.parametrize("path", ["", "/", "progress.json"])
def test_a_path_that_leads_nowhere_is_no_error_of_the_trainer(path, tmp_path, monkeypatch, caplog):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    environ = {PROGRESS_VARIABLE: path}
    monkeypatch.setenv(PROGRESS_VARIABLE, path)
    mark = PassMark({**environ, PROGRESS_VARIABLE: path and f"{path}x/y"})
    mark.touch()
    for _ in range(2):
        Progress.from_env().update("epoch 1", 1, 2)
    note_barrier(BarrierNote(tmp_path, 2), {PROGRESS_VARIABLE: f"{tmp_path}/progress.json"})
    assert "cannot be noted for tfdist status" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_pass_is_noted_for_the_watchdog_whose_block_lasts(tmp_path, monkeypatch, caplog):
    marks = [PassMark({}, every_secs=0.0)]
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        monkeypatch.setattr(Watched, "path", str(folder / "progress.json"))
        marks.append(PassMark(launched(folder), every_secs=0.0))
        for mark in marks:
            mark.touch()
            assert passed_at(folder) is not None
            (folder / "barrier-passed").unlink()
        folder.rmdir()  # as at the end of the block
        monkeypatch.setattr(Watched, "path", None)
        for mark in marks:
            mark.touch()
    assert caplog.messages == []
