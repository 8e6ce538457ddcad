"""The index of a file set as a JSON file, to be kept beside a run."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfdist.data.entry import FileEntry
from tfdist.errors import ConfigError

SETTINGS = ("format", "compression", "header")  # of a file set

_VERSION = 1


def write_index(path: str, files: Sequence[FileEntry], settings: dict[str, Any]) -> None:
    """Writes the index `path` whole or not at all, as far as its file system can rename."""
    entries = [dataclasses.asdict(entry) for entry in files]
    text = json.dumps({"tfdist_files": _VERSION, **settings, "files": entries})
    # A name of its own, since two trainers may write at the same time.
    unfinished = f"{path}.{uuid.uuid4().hex}"
    with tf.io.gfile.GFile(unfinished, "w") as file:
        file.write(text)
    tf.io.gfile.rename(unfinished, path, overwrite=True)


def read_index(path: str) -> tuple[tuple[FileEntry, ...], dict[str, Any]]:
    """The entries and the settings of an index, if its files are still those of the scan.

    Raises:
        ConfigError: `path` is not such an index.
        DataError: a file cannot be read, has shrunk or was written anew. One that has grown is
            no error: what was scanned of it is still there.
    """
    try:
        with tf.io.gfile.GFile(path) as file:
            index = json.loads(file.read())
        if index["tfdist_files"] != _VERSION:
            raise ValueError("another version")
        entries = tuple(
            FileEntry(**{**entry, "marks": tuple(map(tuple, entry["marks"]))})
            for entry in index["files"]
        )
        settings = {name: index[name] for name in SETTINGS}
    except tf.errors.NotFoundError as error:
        raise ConfigError("path", path, "there is no such index; scan, and save it") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        rule = f"an index that FileSet.save of this version wrote ({error!r}); scan again"
        raise ConfigError("path", path, rule) from error
    for entry in entries:
        entry.check()
    return entries, settings
