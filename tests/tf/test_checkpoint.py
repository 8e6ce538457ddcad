"""Checkpoints survive moves, crashes, full disks and odd names; a wrong one is never restored."""

import errno
import os
import pathlib
import re
import resource
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist.train import Checkpointer, checkpoint

v1 = tf.compat.v1


@contextmanager
def job(folder, keep=3, weights=(1.0, 2.0), name="w"):
    """A new process of a job, as far as checkpoints can see."""
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.train.get_or_create_global_step()
        v1.get_variable(name, initializer=np.array(weights, np.float32))
        saver = Checkpointer(folder, keep=keep)
        session.run(v1.global_variables_initializer())

        def save(number):
            step.load(number, session)
            return saver.save(session)

        def restore():
            saver.restore(session)
            return int(session.run(step))

        yield save, restore


def saved(folder, *steps, **options):
    with job(folder, **options) as (save, restore):
        restore()
        return [save(step) for step in steps]


def restored(folder, **options):
    with job(folder, **options) as (_, restore):
        return restore()


def steps(folder):
    return sorted(int(path.stem.split("-", 1)[1]) for path in pathlib.Path(folder).glob("*.index"))


def choose(folder, error):
    """Follows the advice in the message."""
    line = re.search(r"with this line: (.*)$", str(error)).group(1)
    pathlib.Path(folder, "checkpoint").write_text(line)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@contextmanager
def no_file_above(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_folder_restores_nothing(tmp_path):
    assert restored(tmp_path / "a/b") == 0


def test_what_was_saved_is_restored_and_read_back(tmp_path):
    (result,) = saved(tmp_path, 5)
    assert result == tfdist.train.Saved(str(tmp_path / "model-5"), 5)
    assert tf.train.latest_checkpoint(tmp_path) == result.path
    assert restored(tmp_path) == 5
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoint",
        "model-5.data-00000-of-00001",
        "model-5.index",
    ]


def test_a_moved_folder_restores_its_own(tmp_path):
    saved(tmp_path / "old", 5)
    os.rename(tmp_path / "old", tmp_path / "new")
    saved(tmp_path / "old", 900)
    assert restored(tmp_path / "new") == 5


@pytest.mark.parametrize("listed", ["{0}/model-5", "../a/model-5", "{0}/../a/model-5"])
def test_a_path_in_the_state_file_never_leads_to_another_job(tmp_path, listed):
    # As TensorFlow's Saver writes it.
    saved(tmp_path / "a", 5)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "copy/checkpoint").write_text(
        f'model_checkpoint_path: "{listed.format(tmp_path / "a")}"\n'
    )
    saved(tmp_path / "a", 900)
    assert restored(tmp_path / "copy") == 5
    for path in (tmp_path / "copy").glob("model-*"):
        path.unlink()
    with pytest.raises(tfdist.DataError, match=r"copy/model-5\.index: the file is missing"):
        restored(tmp_path / "copy")


def test_a_checkpoint_of_the_saver_of_tensorflow_is_restored(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.get_or_create_global_step().load(7, session)
        v1.get_variable("w", initializer=np.zeros(2, np.float32)).load([0, 0], session)
        v1.train.Saver(sharded=True).save(session, str(tmp_path / "model.ckpt"), 7)
    assert restored(tmp_path) == 7


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with job("model") as (save, restore):
        save(1)
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
        save(2)
        assert restore() == 2
    assert os.listdir(tmp_path / "elsewhere") == []
    assert steps(tmp_path / "model") == [1, 2]


NAMES = [
    *("lr=[0.1]", "100%d %s", "größe-模型", "-rf", "*", "what?", "a\nb", "back\\slash", "[", "{a}"),
    *("with/slash/", "checkpoint", "model-3.index", "a:b", "#'\"$HOME", "~", "model-1.unfinished"),
]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"caf\xe9")])
def test_a_folder_can_have_any_name(tmp_path, name):
    saved(f"{tmp_path}/{name}", 1, 2)
    assert restored(f"{tmp_path}/{name}") == 2
    with job(f"{tmp_path}/{name}", keep=1) as (save, restore):
        assert restore() == 2
        assert save(3).path.startswith(str(tmp_path))
    assert sorted(os.listdir(f"{tmp_path}/{name}")) == [
        "checkpoint",
        "model-3.data-00000-of-00001",
        "model-3.index",
    ]


@pytest.mark.parametrize("kind", [str, os.fsencode, pathlib.Path])
def test_a_folder_can_be_text_bytes_or_a_path(tmp_path, kind):
    saved(kind(str(tmp_path / "m")), 4)
    assert restored(kind(str(tmp_path / "m"))) == 4


@pytest.mark.parametrize(
    ("directory", "rule"),
    [
        (None, "must be a path"),
        (5, "must be a path"),
        ("", "must be a path"),
        (b"", "must be a path"),
        ("a\0b", "must be a path"),
        ("gs://bucket/model", "must be a folder of a file system that is mounted"),
        ("/dev/null", "must be a folder"),
        ("/dev/null/model", "must be a folder"),
        ("/proc/model", "must be a folder that can be made"),
        ("a" * 300, "must be a folder that can be made"),
    ],
)
def test_what_cannot_be_a_folder_is_refused(directory, rule):
    with pytest.raises(tfdist.ConfigError, match=f"directory: .*{rule}"):
        saved(directory)


def test_a_symbolic_link_is_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    saved(tmp_path / "link", 1)
    assert restored(tmp_path / "real") == 1


@pytest.mark.parametrize("keep", [0, -1, True, 1.0, "3", np.bool_(True), np.int64(0)])
def test_a_wrong_keep_is_refused(tmp_path, keep):
    with pytest.raises(tfdist.ConfigError, match=r"keep: .*at least 1"):
        saved(tmp_path, keep=keep)


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [5]), (np.int64(2), [4, 5]), (None, [1, 2, 3, 4, 5])]
)
def test_the_last_ones_are_kept_in_a_run_and_over_runs(tmp_path, keep, left):
    saved(tmp_path / "one run", *range(1, 6), keep=keep)
    for step in range(1, 6):
        with job(tmp_path / "runs", keep=keep) as (save, restore):
            assert restore() == step - 1
            save(step)
    assert steps(tmp_path / "one run") == steps(tmp_path / "runs") == left


def test_the_oldest_go_first_although_steps_begin_again_and_times_were_copied(tmp_path):
    saved(tmp_path, 100, 200, 300)
    saved(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert steps(tmp_path) == [1, 2, 300]
    saved(tmp_path, 3)
    assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("lines", [1, None], ids=["only the name", "the name and the old list"])
def test_after_a_return_to_an_older_step_the_abandoned_ones_go_first(tmp_path, lines):
    saved(tmp_path, 5, 10, 15)
    state = (tmp_path / "checkpoint").read_text().splitlines()
    state[0] = 'model_checkpoint_path: "model-5"'
    (tmp_path / "checkpoint").write_text("\n".join(state[:lines]))
    with job(tmp_path) as (save, restore):
        assert restore() == 5
        save(7)
        assert steps(tmp_path) == [5, 7, 15]
        save(8)
    assert steps(tmp_path) == [5, 7, 8]


def test_other_files_are_never_deleted(tmp_path):
    others = ["model-best.index", "model-1.txt", "model.ckpt-1.index", "xmodel-1.index", "events"]
    for name in others:
        (tmp_path / name).touch()
    with job(tmp_path, keep=1) as (save, _):
        for step in (1, 2, 3):
            save(step)
    assert {*others} < {*os.listdir(tmp_path)}


def test_a_checkpoint_that_cannot_be_deleted_does_not_end_the_training(tmp_path, caplog):
    with job(tmp_path, keep=1) as (save, _):
        save(1)
        index = tmp_path / "model-1.index"
        index.unlink()
        index.mkdir()  # unlink fails, also for root
        save(2)
    assert f"{index} cannot be deleted: Is a directory" in caplog.text
    assert restored(tmp_path) == 2


def test_half_of_a_deleted_checkpoint_is_deleted_too_and_does_not_count(tmp_path):
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "model-2.index").unlink()
    saved(tmp_path, 4)
    assert steps(tmp_path) == [1, 3, 4]
    assert not list(tmp_path.glob("model-2*"))


DATA = "model-5.data-00000-of-00001"
DAMAGES = {
    "an empty index": ("model-5.index", lambda path: cut(path, 0)),
    "a cut index": ("model-5.index", lambda path: cut(path, 60)),
    "an index without its last byte": ("model-5.index", lambda path: cut(path, -1)),
    "garbage as index": ("model-5.index", lambda path: path.write_bytes(b"\xff\x00" * 300)),
    "no index": ("model-5.index", pathlib.Path.unlink),
    "empty data": (DATA, lambda path: cut(path, 0)),
    "data without their last byte": (DATA, lambda path: cut(path, -1)),
    "garbage as data": (DATA, lambda path: path.write_bytes(b"\xff" * path.stat().st_size)),
    "no data": (DATA, pathlib.Path.unlink),
    "an empty state file": ("checkpoint", lambda path: cut(path, 0)),
    "a cut state file": ("checkpoint", lambda path: cut(path, 12)),
    "a state file cut in a name": ("checkpoint", lambda path: cut(path, 28)),
    "garbage as state file": ("checkpoint", lambda path: path.write_bytes(b"\xff\x00 garbage")),
    "a state file that names a folder": (
        "checkpoint",
        lambda path: path.write_text('model_checkpoint_path: "/a/"'),
    ),
    "no state file": ("checkpoint", pathlib.Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_a_whole_checkpoint_offered(tmp_path, damage):
    saved(tmp_path, 3, 4, 5)
    cut(tmp_path / "model-4.data-00000-of-00001", -1)
    file, harm = DAMAGES[damage]
    harm(tmp_path / file)
    with pytest.raises(tfdist.DataError) as caught:
        restored(tmp_path)
    assert caught.value.path == str(tmp_path / file)
    whole = 5 if file == "checkpoint" else 3
    assert f"model-{whole} is whole" in str(caught.value)
    choose(tmp_path, caught.value)
    assert restored(tmp_path) == whole


def test_a_state_file_that_names_absent_files_names_them(tmp_path):
    saved(tmp_path, 3)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-9"')
    with pytest.raises(tfdist.DataError, match=r"model-9\.index: .*missing.*model-3 is whole"):
        restored(tmp_path)


def test_where_none_is_whole_the_files_are_named(tmp_path):
    saved(tmp_path, 3, 5)
    for path in tmp_path.glob("model-*"):
        cut(path, 9)
    with pytest.raises(tfdist.DataError) as caught:
        restored(tmp_path)
    for path in tmp_path.glob("model-*"):
        assert path.name in str(caught.value)
    assert "No checkpoint in the folder is whole" in str(caught.value)
    assert "another folder" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkdir, "Is a directory"),
        (os.mkfifo, "Is no regular file"),
        (lambda path: os.symlink(path, path), "Too many levels of symbolic links"),
    ],
)
def test_a_state_file_that_cannot_be_read_is_not_a_missing_one(tmp_path, make, what):
    state = tmp_path / "checkpoint"
    make(state)
    with pytest.raises(tfdist.DataError, match=f"/checkpoint: cannot be read: {what}. No check"):
        restored(tmp_path)
    os.rename(state, tmp_path / "moved")
    saved(tmp_path, 3, 5)
    state.unlink()
    make(state)
    with pytest.raises(
        tfdist.DataError, match=f"/checkpoint: cannot be read: {what}. model-5 is w"
    ):
        restored(tmp_path)
    (tmp_path / "model-5.index").unlink()
    with pytest.raises(tfdist.DataError, match=f"replace {state} by a file with") as caught:
        restored(tmp_path)
    os.rename(state, tmp_path / "moved again")
    choose(tmp_path, caught.value)
    assert restored(tmp_path) == 3


TARGETS = [
    *("checkpoint", "checkpoint.unfinished", "model-2.index", "model-2.data-00000-of-00001"),
    *("model-2.unfinished.index", "model-2.unfinished.data-00000-of-00001"),
]


def link_to_itself(path):
    os.symlink(path, path)


@pytest.mark.parametrize("first", [True, False], ids=["the first save", "a later one"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, link_to_itself])
@pytest.mark.parametrize("file", TARGETS)
def test_what_is_in_the_way_of_a_file_is_named_and_nothing_is_written(tmp_path, file, make, first):
    path = tmp_path / file
    with job(tmp_path) as (save, restore):
        if not first:
            save(1)
        path.unlink(missing_ok=True)
        make(str(path))
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(tfdist.DataError) as caught:
            save(2)
        assert f"Move {path} away" in str(caught.value)
        assert "disk" not in str(caught.value)
        assert sorted(os.listdir(tmp_path)) == before
        os.rename(path, tmp_path / "moved")
        save(2)
        assert restore() == 2


def test_a_device_and_a_pipe_are_not_read(tmp_path):
    saved(tmp_path, 1)
    data = tmp_path / "model-1.data-00000-of-00001"
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(tfdist.DataError, match="is no regular file"):
        restored(tmp_path)
    (tmp_path / "checkpoint").unlink()
    (tmp_path / "checkpoint").symlink_to("/dev/zero")
    with pytest.raises(tfdist.DataError, match="Is no regular file"):
        restored(tmp_path)


def test_the_model_of_another_job_is_named_by_its_variables(tmp_path):
    saved(tmp_path, 5)
    with pytest.raises(
        tfdist.ConfigError, match=r"must be a folder of this job, .* lacks other: the"
    ):
        restored(tmp_path, name="other")
    with pytest.raises(tfdist.ConfigError, match=r"has w with shape \[2\] instead of \[3\]:"):
        restored(tmp_path, weights=(1, 2, 3))
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.get_or_create_global_step()
        for number in range(9):
            v1.get_variable(f"more{number}", initializer=0)
        saver = Checkpointer(tmp_path)
        with pytest.raises(tfdist.ConfigError, match=r"lacks more0, .*lacks more4 and 4 more:"):
            saver.restore(session)


def test_a_type_that_has_changed_is_named(tmp_path):
    saved(tmp_path, 5)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.get_or_create_global_step()
        v1.get_variable("w", initializer=np.zeros(2, np.int32))
        with pytest.raises(tfdist.ConfigError, match=r"w as float32 instead of int32"):
            Checkpointer(tmp_path).restore(session)


def test_partitioned_variables_are_compared_as_a_whole(tmp_path):
    for size, action in ((7, "save"), (7, "restore")):
        with tf.Graph().as_default(), v1.Session() as session:
            v1.train.get_or_create_global_step()
            cut_in_two = v1.fixed_size_partitioner(2)
            v1.get_variable("p", initializer=tf.ones([size]), partitioner=cut_in_two)
            saver = Checkpointer(tmp_path)
            session.run(v1.global_variables_initializer())
            getattr(saver, action)(session)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.get_or_create_global_step()
        v1.get_variable("p", initializer=tf.ones([8]), partitioner=v1.fixed_size_partitioner(2))
        with pytest.raises(tfdist.ConfigError, match=r"p with shape \[7\] instead of \[8\]"):
            Checkpointer(tmp_path).restore(session)


def test_an_error_that_is_not_about_files_passes(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.train.get_or_create_global_step()
        v1.get_variable("w", initializer=0.0)
        saver = Checkpointer(tmp_path)
        session.run(step.initializer)
        with pytest.raises(tf.errors.FailedPreconditionError, match="w"):
            saver.save(session)
    assert restored(tmp_path) == 0


@pytest.mark.parametrize("step", [5, 6])
@pytest.mark.parametrize(
    ("room", "size"), [(0, 2), (60, 2), (900, 1000)], ids=["none", "for the data", "for the index"]
)
def test_without_space_there_is_one_error_and_the_checkpoint_before_stays(
    tmp_path, room, size, step
):
    weights = np.ones(size)
    with job(tmp_path, weights=weights) as (save, restore):
        save(5)
        with no_file_above(room), pytest.raises(tfdist.DataError) as caught:
            save(step)
        assert caught.value.path == str(tmp_path / f"model-{step}")
        assert "cannot be written: " in str(caught.value)
        assert "File too large" in str(caught.value)
        assert sum(path.stat().st_size for path in tmp_path.glob("*.unfinished*")) == 0
        assert restore() == 5
        save(7)
    assert restored(tmp_path, weights=weights) == 7
    assert not list(tmp_path.glob("*.unfinished*"))


@pytest.mark.parametrize("first", [True, False], ids=["the first save", "a later one"])
@pytest.mark.parametrize(
    "end", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()], ids=repr
)
def test_an_end_at_any_moment_of_a_save_harms_nothing(tmp_path, monkeypatch, first, end):
    """Ends the first, second, ... call that follows a change, until a save passes."""
    real = checkpoint._sync
    raised = tfdist.DataError if isinstance(end, OSError) else KeyboardInterrupt
    for moment in (1, 2, 3, 4, 5):
        folder = tmp_path / str(moment)
        if not first:
            saved(folder, 1)
        calls = []

        def fail(path, calls=calls, moment=moment):
            calls.append(path)
            if len(calls) == moment:
                raise end
            real(path)

        monkeypatch.setattr(checkpoint, "_sync", fail)
        with pytest.raises(raised):
            saved(folder, 2)
        monkeypatch.undo()
        if isinstance(end, OSError):
            assert (2 in steps(folder)) == (moment == 5)
        assert restored(folder) == (2 if moment == 5 else 0 if first else 1)
        saved(folder, 3)
        assert restored(folder) == 3
        assert not list(folder.glob("*.unfinished*"))


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("step", [2, 3])
def test_a_signal_handler_can_save_during_a_save(tmp_path, monkeypatch, moment, step):
    with job(tmp_path, keep=2) as (save, restore):
        save(1)
        calls, sync = [], checkpoint._sync

        def interrupted(path):
            calls.append(path)
            if len(calls) == moment:
                save(step)
            sync(path)

        monkeypatch.setattr(checkpoint, "_sync", interrupted)
        save(2)
        assert len(calls) > 8
        assert restore() == step
        assert not list(tmp_path.glob("*.unfinished*"))
        save(4)
        assert restore() == 4
        assert steps(tmp_path) == [step, 4]


def test_a_checkpoint_that_is_deleted_while_it_is_restored_is_replaced_by_a_newer_one(
    tmp_path, monkeypatch
):
    with job(tmp_path, keep=1) as (save, _), job(tmp_path) as (_, evaluator_restore):
        save(1)
        check = checkpoint._check_files

        def late(*args):
            monkeypatch.undo()
            save(2)
            return check(tmp_path, "model-1", sorted(os.listdir(tmp_path)))

        monkeypatch.setattr(checkpoint, "_check_files", late)
        assert evaluator_restore() == 2


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Copies of the folder `job` as a kill would leave it, before each call that changes it."""
    taken = []

    def watched(real):
        def call(*args, **options):
            if (tmp_path / "job").exists():
                image = tmp_path / str(len(taken))
                if copying.acquire(blocking=False):
                    taken.append(image)
                    shutil.copytree(tmp_path / "job", image)
                    copying.release()
            return real(*args, **options)

        return call

    copying = threading.Lock()
    for name in ("mkdir", "replace", "rmdir", "unlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return taken


def test_a_process_that_is_killed_in_a_save_can_start_again(tmp_path, monkeypatch, images):
    saved(tmp_path / "job", 1, 2, keep=1)
    monkeypatch.undo()
    found = [restored(image) for image in images]
    assert found == sorted(found)
    assert set(found) == {0, 1, 2}
    assert len(found) > 10
    for image in images:
        saved(image, 3, keep=1)
        assert sorted(os.listdir(image)) == [
            "checkpoint",
            "model-3.data-00000-of-00001",
            "model-3.index",
        ]


def test_two_jobs_in_one_folder_are_an_error(tmp_path):
    with job(tmp_path) as (save, restore), job(tmp_path) as (other_save, other_restore):
        assert (restore(), other_restore()) == (0, 0)
        save(1)
        save(2)
        with pytest.raises(tfdist.ConfigError, match=r"no other job saves; .* has saved model-2"):
            other_save(1)
        save(3)
        assert other_restore() == 3  # it knows the folder again
        other_save(3)  # the same step
        with pytest.raises(tfdist.ConfigError, match=r"no other job saves"):
            save(4)


@pytest.mark.parametrize("above", [0, 1])
def test_a_folder_that_became_a_file_is_named(tmp_path, above):
    folder = tmp_path / "a" / "b"
    with job(folder) as (save, restore):
        save(1)
        file = [folder, folder.parent][above]
        os.rename(file, tmp_path / "moved")
        file.touch()
        with pytest.raises(tfdist.DataError, match=f"Not a directory.* Move {file} away"):
            save(2)
        with pytest.raises(tfdist.DataError, match="cannot be read: Not a directory"):
            restore()


def by_tensorflow(folder):
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.get_or_create_global_step().load(900, session)
        v1.train.Saver().save(session, str(folder / "model.ckpt"), 900)


def without_state(folder):
    saved(folder, 900)
    (folder / "checkpoint").unlink()


HISTORIES = {
    "checkpoints": (lambda folder: saved(folder, 800, 900), "model-900"),
    "steps that began again": (lambda folder: saved(folder, 900, 1), "model-900"),
    "those of TensorFlow": (by_tensorflow, "model.ckpt-900"),
    "those of TensorFlow, lost": (
        lambda folder: (folder / "checkpoint").write_text('model_checkpoint_path: "model-900"'),
        "model-900",
    ),
    "no state file": (without_state, "model-900"),
    "an empty state file": (lambda folder: (folder / "checkpoint").touch(), "an unreadable file"),
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("step", [1, 900, 901])
def test_a_job_that_forgot_to_restore_replaces_nothing(tmp_path, history, step):
    make, newest = HISTORIES[history]
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with job(tmp_path, keep=1) as (save, _):
        for _ in range(2):
            with pytest.raises(tfdist.ConfigError) as caught:
                save(step)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    said = f"directory: got '{tmp_path}'; must be restored before the first save, which could"
    assert f"{said} replace {newest}" in str(caught.value)
    assert "call restore(session) before you train; to start at step 0, use another" in str(
        caught.value
    )


def test_after_a_restore_that_failed_a_save_replaces_nothing(tmp_path):
    saved(tmp_path, 5)
    cut(tmp_path / "model-5.index", 3)
    with job(tmp_path) as (save, restore):
        with pytest.raises(tfdist.DataError):
            restore()
        with pytest.raises(tfdist.ConfigError, match="must be restored before the first save"):
            save(6)


def test_a_second_job_that_did_not_restore_does_not_harm_the_first(tmp_path):
    with job(tmp_path) as (save, _), job(tmp_path) as (other_save, other_restore):
        save(1)
        with pytest.raises(tfdist.ConfigError, match="must be restored before the first save"):
            other_save(2)
        save(2)
        assert other_restore() == 2
        other_save(3)
        with pytest.raises(tfdist.ConfigError, match=r"no other job saves; .* has saved model-3"):
            save(3)


def test_variables_that_are_initialized_again_are_no_continuation(tmp_path):
    with tf.Graph().as_default():
        step = v1.train.get_or_create_global_step()
        saver = Checkpointer(tmp_path)
        with v1.Session() as session:
            step.load(5, session)
            saver.save(session)
        with v1.Session() as session:  # as after the loss of a ps
            session.run(step.initializer)
            with pytest.raises(tfdist.ConfigError, match="must be restored before the first save"):
                saver.save(session)
            saver.restore(session)
            assert saver.save(session).global_step == 5


def closed(graph):
    session = v1.Session(graph=graph)
    session.close()
    return session


WRONG_SESSIONS = {
    "none": lambda _: None,
    "a text": lambda _: "session",
    "the class": lambda _: v1.Session,
    "closed": closed,
    "of another graph": lambda _: v1.Session(graph=tf.Graph()),
}


@pytest.mark.parametrize("kind", WRONG_SESSIONS)
@pytest.mark.parametrize("method", ["save", "restore"])
def test_a_session_that_is_of_no_use_is_refused(tmp_path, kind, method):
    with tf.Graph().as_default() as graph:
        v1.train.get_or_create_global_step()
        saver = Checkpointer(tmp_path)
        with pytest.raises(tfdist.ConfigError, match=r"session: .*must be an open session on"):
            getattr(saver, method)(WRONG_SESSIONS[kind](graph))
    assert os.listdir(tmp_path) == []


def test_a_monitored_session_saves_and_restores(tmp_path):
    kinds = (v1.train.MonitoredSession, v1.train.SingularMonitoredSession)
    for before, kind in enumerate([*kinds, v1.train.MonitoredTrainingSession]):
        with tf.Graph().as_default():
            step = v1.train.get_or_create_global_step()
            count = step.assign_add(1)
            saver = Checkpointer(tmp_path)
            with kind() as session:
                saver.restore(session)
                assert session.run(step) == before
                session.run(count)
                saver.save(session)
        with pytest.raises(tfdist.ConfigError, match="must be an open session"):
            saver.save(session)


@pytest.mark.parametrize("moment", [1, 3], ids=["before the rename", "after it"])
def test_a_process_that_was_replaced_during_its_save_names_nothing(tmp_path, monkeypatch, moment):
    with job(tmp_path) as (save, _), job(tmp_path) as (new_save, new_restore):
        save(1)
        calls, sync = [], checkpoint._sync

        def replaced(path):
            calls.append(path)
            if len(calls) == moment:
                monkeypatch.undo()
                assert new_restore() == 1
                new_save(2)
            sync(path)

        monkeypatch.setattr(checkpoint, "_sync", replaced)
        with pytest.raises(tfdist.TfdistError):
            save(3)
        assert new_restore() == 2
        new_save(4)
        new_save(5)
    assert steps(tmp_path) == [2, 4, 5]


def test_only_leftovers_of_a_save_are_no_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "model-5.unfinished").touch()
    (tmp_path / "model-5.unfinished.data-00000-of-00001.tempstate12").write_bytes(b"x")
    (tmp_path / "model-5.unfinished.index").write_bytes(b"x")
    (tmp_path / "model-5.index.tempstate123").touch()  # of an older version
    (tmp_path / "checkpoint.unfinished").write_text("model_che")
    assert restored(tmp_path) == 0
    left, sync = [], checkpoint._sync

    def synced(path):
        left.append(list(tmp_path.glob("model-5.unfinished.*")))
        sync(path)

    monkeypatch.setattr(checkpoint, "_sync", synced)
    saved(tmp_path, 1)
    assert left[0] == []  # they may have filled the disk
    assert restored(tmp_path) == 1
    assert not list(tmp_path.glob("*.unfinished*"))


def test_a_folder_that_was_deleted_is_made_again(tmp_path):
    with job(tmp_path / "m") as (save, restore):
        save(1)
        shutil.rmtree(tmp_path / "m")
        save(2)
        assert restore() == 2


def test_restoring_writes_nothing(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "model-2.unfinished").touch()
    (tmp_path / "model-2.unfinished.index").touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert restored(tmp_path) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_negative_step_is_a_step(tmp_path):
    saved(tmp_path, -3, -2, -1, 0)
    assert steps(tmp_path) == [-2, -1, 0]
    assert restored(tmp_path) == 0


@pytest.mark.parametrize("dtype", [tf.float32, tf.bool])
def test_a_global_step_that_is_no_integer_is_refused(tmp_path, dtype):
    with tf.Graph().as_default():
        collections = [v1.GraphKeys.GLOBAL_STEP, v1.GraphKeys.GLOBAL_VARIABLES]
        v1.get_variable("global_step", [], dtype, collections=collections)
        with pytest.raises(tfdist.ConfigError, match="must contain a global step"):
            Checkpointer(tmp_path)


def test_the_data_are_on_the_disk_before_they_are_named(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def named(path, target):
        events.append(("name", os.path.basename(target)))
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    saved(tmp_path, 5)
    assert events == [
        ("sync", "model-5.unfinished.data-00000-of-00001"),
        ("sync", "model-5.unfinished.index"),
        ("name", DATA),
        ("name", "model-5.index"),
        ("sync", tmp_path.name),
        ("sync", "checkpoint.unfinished"),
        ("name", "checkpoint"),
        ("sync", tmp_path.name),
    ]
