"""What a trainer notes of its barriers is what `tfdist status` reads."""

from tfdist.barrier_notes import BarrierNote, note_barrier, noted_barriers
from tfdist.task import PROGRESS_VARIABLE


def launched(folder):
    return {PROGRESS_VARIABLE: str(folder / "progress.json")}


def test_each_barrier_is_noted_once_in_its_order(tmp_path):
    notes = [BarrierNote("epoch/end", 3), BarrierNote("a 'b'\n", 2), BarrierNote("epoch/end", 2)]
    for note in [*notes, *notes]:
        note_barrier(note, launched(tmp_path))
    assert noted_barriers(tmp_path) == notes


def test_without_a_launcher_nothing_is_noted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    note_barrier(BarrierNote("end", 2), {})
    assert list(tmp_path.iterdir()) == []
    assert noted_barriers(tmp_path) == []


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    note_barrier(BarrierNote("end", 2), launched(tmp_path))
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text() + file.read_text()[:-1])
    assert noted_barriers(tmp_path) == [BarrierNote("end", 2)]
    file.write_text(file.read_text()[:5])
    assert noted_barriers(tmp_path) == []
