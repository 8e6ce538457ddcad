"""Notes of progress: the last one is always in the file, and it is cheap."""

import threading

import pytest

from tfdist import Progress
from tfdist.runs.progress import ProgressNote


@pytest.fixture
def path(tmp_path):
    return tmp_path / "progress.json"


def test_each_note_is_in_the_file_at_once(path):
    progress = Progress(str(path))
    for step in range(100):
        progress.update("epoch 1", step, 100)
        assert ProgressNote.read(path) == ProgressNote("epoch 1", step, 100)


def test_a_shorter_note_replaces_a_longer_one(path):
    progress = Progress(str(path))
    progress.update("the long evaluation é", 10_000, 20_000)
    progress.update("a", 1, 2)
    assert ProgressNote.read(path) == ProgressNote("a", 1, 2)


def test_two_writers_of_one_process_replace_the_same_note(path):
    first, second = Progress(str(path)), Progress(str(path))
    for step in range(3):
        first.update("first", step, 3)
        assert ProgressNote.read(path) == ProgressNote("first", step, 3)
        second.update("second", step, 3)
        assert ProgressNote.read(path) == ProgressNote("second", step, 3)


def test_a_note_is_read_while_others_are_written(path):
    progress, over = Progress(str(path)), threading.Event()
    progress.update("epoch", 0, 0)

    def write():
        step = 0
        while not over.is_set():
            progress.update("epoch" * (step % 40), step, 10**step % 10**20)
            step += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(ProgressNote.read(path) for _ in range(2000))
    finally:
        over.set()
        thread.join()


def test_without_a_note_there_is_none(path):
    assert ProgressNote.read(path) is None
    path.touch()
    assert ProgressNote.read(path) is None


def test_a_file_that_holds_no_note_is_an_error(path):
    path.write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        ProgressNote.read(path)


def test_an_unknown_total_is_not_shown():
    assert ProgressNote("epoch 1", 8, None).count == "8"
    assert ProgressNote("epoch 1", 8, 10).count == "8 of 10"
