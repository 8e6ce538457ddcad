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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import text_format  # type: ignore[import-untyped]

from tfdist.errors import ConfigError, DataError, checked_integer, reason_of
from tfdist.ps.session import PS_LOST

_log = logging.getLogger(__name__)

_STATE = "checkpoint"  # as TensorFlow names this file
_UNFINISHED = re.compile(r"(model--?\d+)\.unfinished(.*)", re.DOTALL)
_FILE = re.compile(r"(.+)\.(?:index|data-\d{5}-of-(\d{5}))", re.DOTALL)
_OURS = re.compile(r"model-(-?\d+)")
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"  # a key in every checkpoint of tf.train.Checkpoint
_MOST_NAMES = 5  # in a message


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
        try:
            self._global_step = tf.compat.v1.train.get_global_step()
        except (TypeError, ValueError) as error:  # no integer, or no scalar
            raise ConfigError("graph", None, f"must contain a global step; {error}") from error
        if self._global_step is None:
            raise ConfigError("graph", None, "must contain a global step, which names a checkpoint")
        graph = tf.compat.v1.get_default_graph()
        known = len(graph.get_operations())
        self._saver = tf.compat.v1.train.Saver(max_to_keep=None)  # this class deletes
        added = graph.get_operations()[known:]
        self._variables = _variables(next(op for op in added if op.type == "SaveV2"))
        # The contents of the state file that this job has read or written; None before that.
        self._known: tuple[bytes | None, ...] | None = None
        self._lock = threading.RLock()
        self._saves = 0  # that run now: a signal handler may save during a save

    def save(self, session: tf.compat.v1.Session) -> Saved:
        """Writes a checkpoint; blocks until it is on disk. Only the chief may call it.

        Raises:
            DataError: it cannot be written; the one before it can still be restored.
            ConfigError: another job has saved in the folder.
        """
        name = f"model-{int(session.run(self._global_step))}"
        with self._lock:
            self._saves += 1
            try:
                state = self._own_state()
                step = self._write(session, name)
                self._choose(name, state)
                if self._saves == 1:
                    _delete(self._folder, _unfinished(self._folder))
            except (OSError, tf.errors.OpError) as error:
                if not _is_about_files(error, "SaveV2"):
                    raise
                what = (
                    f"the checkpoint cannot be written: {_reason(error)}. The earlier ones are "
                    "unchanged. Free some space, or make the folder writable"
                )
                raise DataError(_shown(self._folder / name), None, what) from error
            finally:
                self._saves -= 1
        return Saved(str(self._folder / name), step)

    def restore(self, session: tf.compat.v1.Session) -> None:
        """Restores the checkpoint that the file `checkpoint` names, if the folder contains any.

        Raises:
            DataError: the folder contains checkpoints, but the one to restore is not named, missing
                or damaged. The message says which other one is whole, and how to choose it.
            ConfigError: it has other variables than the graph.
        """
        folder = self._folder
        try:
            state = _read_state(folder)
            files = _files(folder)
            if state is None:
                # An interrupted save does not count if the state file has never named it.
                marked = {file.removesuffix(".unfinished") for file in _unfinished(folder)}
                files = {name: found for name, found in files.items() if name not in marked}
            self._known = (state,)
            if state is not None or files:
                self._load(session, _chosen(folder, state), files)
        except DataError as error:
            if _read_state(folder) != state:  # the job has saved, and deleted this one meanwhile
                self.restore(session)
                return
            raise DataError(error.path, None, f"{error.what}. {self._advice(files)}") from error
        except OSError as error:
            where = _shown(Path(os.fsdecode(error.filename or folder)))
            raise DataError(where, None, f"cannot be read: {error.strerror}") from error

    def _unfinished(self) -> str:
        return ".unfinished" if self._saves == 1 else f".unfinished-{self._saves}"

    def _own_state(self) -> bytes | None:
        """The state file; raises ConfigError if another process has written it."""
        state = _read_state(self._folder)
        if self._known is not None and state is not None and state not in self._known:
            raise ConfigError(
                "directory",
                _shown(self._folder),
                "must be a folder in which no other job saves; another process has saved "
                f"{_named(state)} in it since this job last saved or restored",
            )
        self._known = (state,)
        return state

    def _write(self, session: tf.compat.v1.Session, name: str) -> int:
        """Writes the files of a checkpoint, which nothing names yet; returns its global step."""
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
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

    def _choose(self, name: str, state: bytes | None) -> None:
        """Makes `name` the checkpoint to restore, and deletes the oldest beyond `keep`."""
        folder = self._folder
        files = _files(folder)
        names = [*(other for other in _by_age(files, state) if other != name), name]
        names = names[-self._keep :] if self._keep else names
        text = _state_text(name, names, time.time())
        unfinished = folder / f"{_STATE}{self._unfinished()}"
        unfinished.write_bytes(text)
        _sync(unfinished)
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

    def _load(
        self, session: tf.compat.v1.Session, name: str, files: Mapping[str, list[str]]
    ) -> None:
        data = _check_files(self._folder, name, files.get(name, []))
        with _plain(self._folder) as plain:
            self._check_variables(name, _open(self._folder, f"{plain}/{name}"))
            try:
                self._saver.restore(session, f"{plain}/{name}")
            except tf.errors.OpError as error:
                if not _is_about_files(error, "RestoreV2"):
                    raise
                what = f"the file cannot be read; it may be truncated or damaged: {_reason(error)}"
                raise DataError(_shown(self._folder / data), None, what) from error

    def _check_variables(self, name: str, reader: Any) -> None:
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        if _OBJECTS in shapes:
            return  # its keys are no names of variables; the Saver translates them
        wrong = []
        for key, (shape, dtype) in self._variables.items():
            if key not in shapes:
                wrong.append(f"lacks {key}")
            elif not shape.is_compatible_with(shapes[key]):
                wrong.append(f"has {key} with shape {shapes[key]} instead of {shape.as_list()}")
            elif dtype != types[key]:
                wrong.append(f"has {key} as {types[key].name} instead of {dtype.name}")
        if wrong:
            raise ConfigError(
                "directory",
                _shown(self._folder),
                f"must be a folder of this job, but {name} in it {_few(wrong)}: the model has "
                "changed, or another job saved it. To start at step 0, use another folder",
            )

    def _advice(self, files: Mapping[str, list[str]]) -> str:
        """Which checkpoint is whole, and how to choose it."""
        for name in sorted(files, key=_step_of, reverse=True):
            if _is_whole(self._folder, name, files[name]):
                line = _state_text(name).decode().strip()
                return (
                    f"{name} is whole; to continue from it, replace the contents of "
                    f"{_shown(self._folder / _STATE)} with this line: {line}"
                )
        found = _few(sorted(file for names in files.values() for file in names)) or "no other file"
        return (
            f"No checkpoint in the folder is whole (it contains {found}). Copy one there again, "
            "or use another folder to start at step 0"
        )


def _folder(directory: Any) -> Path:
    """The folder, absolute, so that a later `os.chdir` does not move it."""
    try:
        text = os.fsdecode(directory)
    except TypeError as error:
        raise ConfigError("directory", directory, "must be a path") from error
    if not text or "\0" in text:
        raise ConfigError("directory", directory, "must be a path of a folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        rule = "must be a folder of a file system that is mounted here; mount it, or copy from one"
        raise ConfigError("directory", directory, rule)
    try:
        folder = Path.cwd() / text
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError("directory", directory, "must be a folder") from error
    except OSError as error:
        rule = f"must be a folder that can be made: {error.strerror}"
        raise ConfigError("directory", directory, rule) from error
    return folder


def _variables(save: Any) -> dict[str, tuple[Any, Any]]:
    """Shape and type of each variable that a SaveV2 operation saves; of a slice, of the whole."""
    _, names, specs, *tensors = save.inputs
    found = {}
    for name, spec, tensor in zip(
        tf.get_static_value(names), tf.get_static_value(specs), tensors, strict=True
    ):
        whole = spec.decode().split()[:-1]
        shape = tf.TensorShape([int(size) for size in whole]) if whole else tensor.shape
        found[name.decode()] = (shape, tensor.dtype.base_dtype)
    return found


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


def _is_about_files(error: Any, op_type: str) -> bool:
    """Whether the file system caused it, and not the session: a lost ps, no memory, no value."""
    if isinstance(error, OSError):
        return True
    return not isinstance(error, PS_LOST) and getattr(error.op, "type", None) == op_type


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
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a device may never end
            raise OSError(errno.EINVAL, "Is no regular file", str(path))
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _state_text(name: str, names: Iterable[str] = (), now: float | None = None) -> bytes:
    """A state file; with the time, those of two jobs that save the same step differ."""
    state = _new_state()
    state.model_checkpoint_path = name
    state.all_model_checkpoint_paths.extend(names)
    if now is not None:
        state.last_preserved_timestamp = now
    return str(state).encode()


def _new_state() -> Any:
    state = tf.compat.v1.train.generate_checkpoint_state_proto("/", "name")
    state.Clear()
    return state


def _parse(state: bytes | None) -> list[str]:
    """The names in a state file, the one to restore last; empty if it cannot be read.

    Without their folders: after a move the old folder may belong to another job.
    """
    parsed = _new_state()
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


def _files(folder: Path) -> dict[str, list[str]]:
    """The files of each checkpoint in the folder, by its name."""
    found: dict[str, list[str]] = {}
    for file in os.listdir(folder):
        if (match := _FILE.fullmatch(file)) and not _UNFINISHED.fullmatch(file):
            found.setdefault(match[1], []).append(file)
    return found


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
