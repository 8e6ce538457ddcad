"""Notes of progress: the last one is always in the file, and it is cheap."""

import os
import threading

import numpy as np
import pytest

from tfdist import ConfigError, Progress
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
            progress.update("epoch" * (step % 40), step, 10 ** (step % 20))
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


def test_an_unknown_total_is_not_shown():
    assert ProgressNote("epoch 1", 8, None).count == "8"
    assert ProgressNote("epoch 1", 8, 10).count == "8 of 10"


@pytest.mark.parametrize(
    ("given", "noted"), [(np.int64(3), 3), (np.array(3), 3), (3.0, 3), (np.float32(3), 3)]
)
def test_integers_of_other_types_are_converted(path, given, noted):
    Progress(str(path)).update("epoch 1", given, given)
    assert ProgressNote.read(path) == ProgressNote("epoch 1", noted, noted)


@pytest.mark.parametrize(
    "wrong", [True, np.bool_(True), 1.5, float("nan"), float("inf"), "3", None]
)
def test_a_wrong_number_is_refused_at_the_call_also_without_a_launcher(path, wrong):
    for progress in (Progress(str(path)), Progress(None)):
        with pytest.raises(ConfigError, match=r"done: .*; must be an integer"):
            progress.update("epoch 1", wrong, 10)
    with pytest.raises(ConfigError, match=r"state: got b'epoch'; must be a str"):
        Progress(None).update(b"epoch", 1, 10)


def test_a_negative_number_is_refused_and_an_estimated_total_may_be_exceeded(path):
    progress = Progress(str(path))
    for done, total in ((-5, 3), (5, -3), (-5, -3), (-(10**30), 3)):
        with pytest.raises(ConfigError, match="must be at least 0"):
            progress.update("epoch 1", done, total)
    progress.update("epoch 1", 5, 3)
    assert ProgressNote.read(path) == ProgressNote("epoch 1", 5, 3)


@pytest.mark.parametrize("wrong", [5, True, [], "a\0b", "\ud800", b"note", 1.5])
def test_what_is_no_path_is_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        Progress(wrong)
    assert (caught.value.field, caught.value.value) == ("path", wrong)


def test_a_note_that_cannot_be_written_is_logged_once(tmp_path, caplog):
    progress = Progress(str(tmp_path / "gone" / "progress.json"))
    for step in range(3):
        progress.update("epoch 1", step, 10)
    [line] = caplog.messages
    assert line.startswith("the progress cannot be noted in ")
    assert line.endswith("progress.json: No such file or directory")


def test_a_script_may_change_its_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    progress = Progress("progress.json")
    monkeypatch.chdir("/")
    progress.update("epoch 1", 1, 10)
    assert ProgressNote.read(tmp_path / "progress.json") == ProgressNote("epoch 1", 1, 10)


@pytest.mark.parametrize(
    "text",
    ['{"state": "epo', "[1, 2]", "7", '{"state": 1, "done": 2, "total": 3}', '{"other": 1}', "é\n"],
)
def test_a_file_that_is_no_note_is_none(path, text):
    path.write_text(text, "utf-8")
    assert ProgressNote.read(path) is None


def test_a_descriptor_that_the_script_has_closed_and_used_anew_is_not_written_to(path):
    progress = Progress(str(path))
    progress.update("epoch 1", 1, 10)
    [ours] = (
        number
        for number in map(int, os.listdir("/proc/self/fd"))
        if os.path.exists(f"/proc/self/fd/{number}")
        and os.path.samefile(f"/proc/self/fd/{number}", path)
    )
    data = path.with_name("data")
    data.write_text("of the script")
    with open(data, "rb+") as file:
        os.dup2(file.fileno(), ours)  # as after os.closerange, when it opens a file there
        progress.update("epoch 1", 2, 10)
        del progress
        os.fstat(ours)  # still open
        os.close(ours)
    assert data.read_text() == "of the script"
    assert ProgressNote.read(path) == ProgressNote("epoch 1", 2, 10)


def test_a_number_that_no_reader_takes_is_refused_at_the_call(path):
    for number in (10**5000, 1e300, -(2**65)):
        with pytest.raises(ConfigError, match=r"done: got 'an integer of .* bits'; must be at"):
            Progress(str(path)).update("epoch 1", number, 10)
    Progress(str(path)).update("epoch 1", 2**64, 2**64)
    assert ProgressNote.read(path) == ProgressNote("epoch 1", 2**64, 2**64)


def test_a_state_is_noted_in_one_line_that_can_be_shown(path):
    Progress(str(path)).update("caf\udce9\x1b[2J\nb" + "c" * 2000, 1, 10)
    state = ProgressNote.read(path).state
    assert state.startswith(r"caf\udce9\x1b[2J\nbccc")
    assert len(state) < 1100


def test_a_file_that_was_deleted_is_not_written_to_in_silence(path, caplog):
    progress = Progress(str(path))
    progress.update("epoch 1", 1, 10)
    path.unlink()
    progress.update("epoch 1", 2, 10)
    assert ProgressNote.read(path) == ProgressNote("epoch 1", 2, 10)
    path.unlink()
    path.parent.rmdir()
    for step in (3, 4):
        progress.update("epoch 1", step, 10)
    [line] = caplog.messages
    assert line.endswith("progress.json: No such file or directory")
