"""A trainer notes its barriers in files, which `tfdist status` and the launcher read."""

import os

from tfdist.runs.barrier_notes import BarrierNote, PassMark, note_barrier, noted_barriers, passed_at
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
