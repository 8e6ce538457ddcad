"""Checkpoints that hold the work of all trainers: the chief saves in the action of a barrier.

A save never changes the checkpoint before it. Its files are written as model-STEP.unfinished.*,
flushed to the disk and renamed; then the file `checkpoint`, which names the one to restore, is
replaced. Until then an empty file model-STEP.unfinished marks them. Every name in `checkpoint` is
relative, so a folder can be moved and copied.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import text_format  # type: ignore[import-untyped]

from tfdist.errors import ConfigError, DataError, checked_integer, reason_of
from tfdist.ps.session import PS_LOST
from tfdist.train.graph import Mark, differences, global_step, saved_variables

_log = logging.getLogger(__name__)

_STATE = "checkpoint"  # as TensorFlow names this file
_UNFINISHED = re.compile(r"(model--?\d+)\.unfinished(.*)", re.DOTALL)
_FILE = re.compile(r"(.+)\.(?:index|data-\d{5}-of-(\d{5}))", re.DOTALL)
_OURS = re.compile(r"model-(-?\d+)")
_MOST_NAMES = 5  # in a message
_State: Any = type(tf.compat.v1.train.generate_checkpoint_state_proto("/", "name"))


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        path: its absolute prefix, as TensorFlow's functions take it.
        global_step: read back from the file.
    """

    path: str
    global_step: int


class Checkpointer:
    """Saves and restores all variables of the current graph.

    Call `save` in the action of a barrier: then every trainer has ended its last step and none has
    begun another, so the checkpoint is a state that the training was really in. The chief writes
    all of it, so no file system needs to be shared. No other job may save in the folder.
    """

    def __init__(
        self,
        directory: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        keep: int | None = 3,
    ) -> None:
        """Creates `directory` if it is missing; keeps the last `keep` checkpoints, all if None.

        Those that earlier runs have saved in the folder count too.

        Raises:
            ConfigError: `directory` cannot be a folder, `keep` is not a positive integer, or the
                graph has no global step.
        """
        self._folder = _folder(directory)
        self._keep = None if keep is None else checked_integer("keep", keep, 1)
        self._graph, self._global_step = tf.compat.v1.get_default_graph(), global_step()
        known = len(self._graph.get_operations())
        self._saver = tf.compat.v1.train.Saver(max_to_keep=None)  # this class deletes
        added = self._graph.get_operations()[known:]
        self._variables = saved_variables(next(op for op in added if op.type == "SaveV2"))
        # The state files that these variables were restored from or saved with: a restarted chief
        # finds the variables of the one before it, and does not restore.
        self._mark = Mark(f"checkpoint/{_shown(self._folder)}", self._global_step.device)
        self._known: tuple[bytes | None, ...] | None = None  # the same, of this process
        self._lock = threading.RLock()
        self._saves = 0  # that run now: a signal handler may save during a save

    def save(self, session: tf.compat.v1.Session) -> Saved:
        """Writes a checkpoint; blocks until it is on disk. Only the chief may call it.

        Raises:
            DataError: it cannot be written; the one before it can still be restored.
            ConfigError: the folder contains checkpoints that were not restored, or another job has
                saved in it; or the session cannot run the graph.
        """
        with self._lock:
            session = self._checked(session)
            name = f"model-{int(session.run(self._global_step))}"
            self._saves += 1
            try:
                self._check_targets(name)
                state = self._own_state()
                self._folder.mkdir(parents=True, exist_ok=True)
                with _undone(self._folder, name):
                    step = self._write(session, name)
                    self._choose(session, name, state)
                if self._saves == 1:
                    _delete(self._folder, _unfinished(self._folder))
            except (OSError, tf.errors.OpError) as error:
                if not _is_about_files(error, "SaveV2"):
                    raise
                what = f"the checkpoint cannot be written: {_reason(error)}. The earlier ones are"
                what += f" unchanged. {_way_out(error)}"
                raise DataError(_shown(self._folder / name), None, what) from error
            finally:
                self._saves -= 1
        return Saved(str(self._folder / name), step)

    def restore(self, session: tf.compat.v1.Session) -> None:
        """Restores the checkpoint that the file `checkpoint` names, if the folder contains any.

        Raises:
            DataError: the folder contains checkpoints, but the one to restore is not named, missing
                or damaged. The message says which other one is whole, and how to choose it.
            ConfigError: it has other variables than the graph, or the session cannot run that.
        """
        session, folder = self._checked(session), self._folder
        try:
            state = _read_state(folder)
            files = _files(folder, state)
            if state is not None or files:
                self._load(session, _chosen(folder, state), files)
            self._know(session, state)
        except DataError as error:
            if _read_state(folder) != state:  # the job has saved, and deleted this one meanwhile
                self.restore(session)
                return
            raise DataError(error.path, None, f"{error.what}. {self._advice(files)}") from error
        except OSError as error:
            where, what = Path(os.fsdecode(error.filename or folder)), str(error.strerror)
            with suppress(OSError):
                what += f". {self._advice(_files(folder))}"
            raise DataError(_shown(where), None, f"cannot be read: {what}") from error

    def _unfinished(self) -> str:
        return ".unfinished" if self._saves == 1 else f".unfinished-{self._saves}"

    def _checked(self, session: Any) -> tf.compat.v1.Session:
        """The session, or the one in a MonitoredSession; raises ConfigError if it is of no use."""
        inner = getattr(session, "_tf_sess", lambda: session)()  # (TensorFlow 2.21)
        if getattr(inner, "graph", None) is self._graph:
            with suppress(RuntimeError):  # it is closed
                marked = self._mark.get(inner)
                # Without a mark the variables are new ones, also if this process saved others.
                self._known = marked and (self._known or marked)
                return inner
        rule = "must be an open session on the graph in which the Checkpointer was made"
        raise ConfigError("session", session, rule)

    def _check_targets(self, name: str) -> None:
        """Raises OSError if anything but a file has the name of a file that a save writes."""
        ends = ("index", "data-00000-of-00001")
        files = [f"{prefix}.{end}" for prefix in (name, name + self._unfinished()) for end in ends]
        for file in (*files, _STATE, _STATE + self._unfinished()):
            with suppress(FileNotFoundError):
                _check_regular(self._folder / file)

    def _know(self, session: tf.compat.v1.Session, *states: bytes | None) -> None:
        self._known = states
        self._mark.set(session, [state or b"" for state in states])

    def _own_state(self) -> bytes | None:
        """The state file; raises ConfigError if this job has neither restored nor written it."""
        state = _read_state(self._folder)
        if self._known is None:
            files = _files(self._folder, state) if self._folder.exists() else {}
            names = [name for name in files if state is not None or _OURS.fullmatch(name)]
            if state is not None or names:
                newest = max((*names, *_parse(state)), key=_step_of, default=_named(state))
                rule = f"must be restored before the first save, which could replace {newest} in it"
                rule += ". To continue from there, call restore(session) before you train; to start"
                rule += " at step 0, use another folder"
                raise ConfigError("directory", _shown(self._folder), rule)
        elif state is not None and state not in self._known:
            rule = "must be a folder in which no other job saves; another process has saved "
            rule += f"{_named(state)} in it since this job last saved or restored"
            raise ConfigError("directory", _shown(self._folder), rule)
        self._known = (state,)
        return state

    def _write(self, session: tf.compat.v1.Session, name: str) -> int:
        """Writes the files of a checkpoint, which nothing names yet; returns its global step."""
        folder = self._folder
        (folder / f"{name}.unfinished").touch()
        unfinished = f"{name}{self._unfinished()}"
        if self._saves == 1:
            _delete_unfinished(folder)  # what an interrupted save left may fill the disk
        try:
            with _plain(folder) as plain:
                prefix = f"{plain}/{unfinished}"
                self._saver.save(session, prefix, write_meta_graph=False, write_state=False)
                step = int(_open(folder, prefix).get_tensor(self._global_step.op.name))
            written = [file for file in _unfinished(folder) if file.startswith(f"{unfinished}.")]
            for file in written:
                _sync(folder / file)
        except BaseException:
            if self._saves == 1:
                _delete_unfinished(folder)
            raise
        for file in written:  # the index is the last
            (folder / file).replace(folder / f"{name}{file.removeprefix(unfinished)}")
        _sync(folder)
        return step

    def _choose(self, session: tf.compat.v1.Session, name: str, state: bytes | None) -> None:
        """Makes `name` the checkpoint to restore, and deletes the oldest beyond `keep`."""
        folder = self._folder
        files = _files(folder)
        names = [*(other for other in _by_age(files, state) if other != name), name]
        names = names[-self._keep :] if self._keep else names
        text = _state_text(name, names, time.time())
        unfinished = folder / f"{_STATE}{self._unfinished()}"
        unfinished.write_bytes(text)
        _sync(unfinished)
        self._know(session, *(self._known or ()), text)
        # This process may have been stopped, and another one started in its place.
        if self._own_state() != state:
            unfinished.unlink()  # a signal handler has saved, maybe a later step
            return
        self._known = (state, text)
        unfinished.replace(folder / _STATE)
        _sync(folder)
        for other in files:
            if _OURS.fullmatch(other) and other not in names:
                _delete(folder, files[other])

    def _load(self, session: Any, name: str, files: Mapping[str, list[str]]) -> None:
        data = _check_files(self._folder, name, files.get(name, []))
        with _plain(self._folder) as plain:
            reader = _open(self._folder, f"{plain}/{name}")
            if wrong := differences(self._variables, reader):
                rule = (
                    f"must be a folder of this job, but {name} in it {_few(wrong)}: the model has"
                )
                rule += " changed, or another job saved it. To start at step 0, use another folder"
                raise ConfigError("directory", _shown(self._folder), rule)
            try:
                self._saver.restore(session, f"{plain}/{name}")
            except tf.errors.OpError as error:
                if not _is_about_files(error, "RestoreV2"):
                    raise
                what = f"the file cannot be read; it may be truncated or damaged: {_reason(error)}"
                raise DataError(_shown(self._folder / data), None, what) from error

    def _advice(self, files: Mapping[str, list[str]]) -> str:
        """Which checkpoint is whole, and how to choose it."""
        state, how = self._folder / _STATE, "the contents of {}"
        if os.path.lexists(state) and not state.is_file():
            how = "{} by a file"
        for name in sorted(files, key=_step_of, reverse=True):
            if _is_whole(self._folder, name, files[name]):
                how = f"to continue from it, replace {how.format(_shown(state))} with this line"
                return f"{name} is whole; {how}: {_state_text(name).decode().strip()}"
        found = _few(sorted(file for names in files.values() for file in names)) or "no other file"
        none = f"No checkpoint in the folder is whole (it contains {found})"
        return f"{none}. Copy one there again, or use another folder to start at step 0"


def _folder(directory: Any) -> Path:
    """The folder, absolute, so that a later `os.chdir` does not move it."""
    try:
        text = os.fsdecode(os.fsencode(directory))
    except (TypeError, UnicodeEncodeError) as error:
        raise ConfigError("directory", directory, "must be a path") from error
    if not text or "\0" in text:
        raise ConfigError("directory", directory, "must be a path of a folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        rule = "must be a folder of a file system that is mounted here; mount it, or copy from one"
        raise ConfigError("directory", directory, rule)
    try:
        folder = Path.cwd() / text
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        rule = "must be a folder" + ("" if is_file else f" that can be made: {error.strerror}")
        raise ConfigError("directory", directory, rule) from error
    return folder


def _shown(path: Path) -> str:
    """The path as text that can be printed: a name need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _few(words: list[str]) -> str:
    more = len(words) - _MOST_NAMES
    return ", ".join(words[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _reason(error: OSError | tf.errors.OpError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    text = reason_of(str(error))
    # TensorFlow 2.21 puts the path of a temporary file before the text of the system.
    return text.rpartition("; ")[2] if text.startswith("/") else text


def _way_out(error: OSError | tf.errors.OpError) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
        path = Path(error.filename)
        found = next(one for one in (path, *path.parents) if os.path.lexists(one))
        return f"Move {_shown(found)} away, because the checkpoint is written there"
    return "Check that the disk is not full, and that the folder is writable"


def _is_about_files(error: Any, op_type: str) -> bool:
    """Whether the file system caused it, and not the session: a lost ps, no memory, no value."""
    if isinstance(error, OSError):
        return True
    return not isinstance(error, PS_LOST) and getattr(error.op, "type", None) == op_type


@contextmanager
def _undone(folder: Path, name: str) -> Iterator[None]:
    """Deletes the new files of a checkpoint that could not be completed, if nothing names it."""
    before = _files(folder)
    try:
        yield
    except Exception:
        with suppress(OSError):
            if name not in {*before, *_parse(_read_state(folder))}:
                _delete(folder, _files(folder).get(name, []))
        raise


@contextmanager
def _plain(folder: Path) -> Iterator[str]:
    r"""A path of `folder` that TensorFlow takes as it is.

    TensorFlow 2.21 takes ``[*?\`` in a prefix for a pattern when it restores, and refuses what is
    not UTF-8. The server of a trainer is in this process, so both see the same descriptor.
    """
    text = str(folder)
    if not re.search(r"[\[*?\\\ud800-\udfff]", text):
        yield text
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _open(folder: Path, prefix: str) -> Any:
    try:
        return tf.compat.v1.train.NewCheckpointReader(prefix)
    except Exception as error:  # TensorFlow 2.21 raises OpError, IndexError and others here
        index = folder / f"{os.path.basename(prefix)}.index"
        what = f"the file cannot be read; it may be truncated or damaged: {reason_of(str(error))}"
        raise DataError(_shown(index), None, what) from error


def _sync(path: Path) -> None:
    """Returns when the file or the names in the folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without fsync
            raise
    finally:
        os.close(descriptor)


def _read_state(folder: Path) -> bytes | None:
    path = folder / _STATE
    try:
        _check_regular(path)
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _check_regular(path: Path) -> None:
    """Raises OSError if it is a folder, or a device or pipe, which may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        what = "Is a directory" if stat.S_ISDIR(mode) else "Is no regular file"
        raise OSError(errno.EISDIR, what, str(path))


def _state_text(name: str, names: Iterable[str] = (), now: float | None = None) -> bytes:
    """A state file; with the time, those of two jobs that save the same step differ."""
    state = _State(model_checkpoint_path=name, all_model_checkpoint_paths=names)
    if now is not None:
        state.last_preserved_timestamp = now
    return str(state).encode()


def _parse(state: bytes | None) -> list[str]:
    """The names in a state file, the one to restore last; empty if it cannot be read.

    Without their folders: after a move the old folder may belong to another job.
    """
    parsed = _State()
    try:
        text_format.Parse((state or b"").decode(), parsed)
    except (text_format.ParseError, UnicodeDecodeError):
        return []
    paths = [*parsed.all_model_checkpoint_paths, parsed.model_checkpoint_path]
    chosen = os.path.basename(paths[-1])
    return [os.path.basename(path) for path in paths] if chosen else []


def _named(state: bytes | None) -> str:
    return (_parse(state) or ["an unreadable file `checkpoint`"])[-1]


def _chosen(folder: Path, state: bytes | None) -> str:
    names = _parse(state)
    if not names:
        how = "missing" if state is None else "damaged" if state.strip() else "empty"
        what = f"the file that names the checkpoint to restore is {how}"
        raise DataError(_shown(folder / _STATE), None, what)
    return names[-1]


def _files(folder: Path, state: bytes | None = b"") -> dict[str, list[str]]:
    """The files of each checkpoint in the folder, by its name.

    Without a state file an interrupted save does not count, because none has ever named it.
    """
    found: dict[str, list[str]] = {}
    for file in os.listdir(folder):
        if (match := _FILE.fullmatch(file)) and not _UNFINISHED.fullmatch(file):
            found.setdefault(match[1], []).append(file)
    marked = () if state is not None else _unfinished(folder)
    return {name: found[name] for name in found if f"{name}.unfinished" not in marked}


def _check_files(folder: Path, name: str, files: list[str]) -> str:
    """The name of the first data file; raises DataError if a file is missing."""
    count = next((match[2] for file in files if (match := _FILE.fullmatch(file)) and match[2]), "1")
    data = [f"{name}.data-{shard:05}-of-{count:>05}" for shard in range(max(1, int(count)))]
    for file in (f"{name}.index", *data):
        if file not in files:
            raise DataError(_shown(folder / file), None, "the file is missing")
        if not (folder / file).is_file():
            raise DataError(_shown(folder / file), None, "is no regular file")
    return data[0]


def _is_whole(folder: Path, name: str, files: list[str]) -> bool:
    """Whether every value can be read; it reads them all."""
    try:
        _check_files(folder, name, files)
        with _plain(folder) as plain:
            reader = _open(folder, f"{plain}/{name}")
            for key in reader.get_variable_to_shape_map():
                reader.get_tensor(key)
    except Exception:  # as in `_open`
        return False
    return True


def _step_of(name: str) -> int:
    match = re.search(r"-(-?\d+)$", name)
    return int(match[1]) if match else -1


def _by_age(files: Mapping[str, list[str]], state: bytes | None) -> list[str]:
    """The checkpoints of this class, the oldest first.

    Times of files do not survive a copy, and steps start again. So the state file orders them; one
    that is not in it is older, or no later run has continued from it.
    """
    ours = [name for name in files if _OURS.fullmatch(name) and f"{name}.index" in files[name]]
    listed = list(dict.fromkeys(reversed(_parse(state))))[::-1]
    others = sorted(set(ours).difference(listed), key=_step_of)
    return [*others, *(name for name in listed if name in ours)]


def _delete(folder: Path, files: list[str]) -> None:
    for file in sorted(files, reverse=True):  # the index first: what is left looks unfinished
        try:
            (folder / file).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be deleted: %s", _shown(folder / file), error.strerror)


def _unfinished(folder: Path) -> list[str]:
    """The sorted names of the files of unfinished saves, and of their marks."""
    return sorted(file for file in os.listdir(folder) if _UNFINISHED.fullmatch(file))


def _delete_unfinished(folder: Path) -> None:
    """Deletes what unfinished saves have written, but not their marks."""
    _delete(folder, [file for file in _unfinished(folder) if not file.endswith(".unfinished")])
