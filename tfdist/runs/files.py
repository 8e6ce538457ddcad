"""Reads and extends the files of a run, which are input: any program may have written them.

`read_file` reads each of them: never a device, never for ever. `read_record` gives each field of a
record a value of its type, and makes its texts printable.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import os
import stat
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tfdist.errors import DataError, printable, reason_of

LARGEST = 2**64  # of the integers in a record

_WRITES = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_RECORD_BYTES = 2**20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}

_Record = TypeVar("_Record")


def read_file(path: Path, *, start: int = 0, most: int = _RECORD_BYTES) -> bytes:
    """The content of a file of a run; does not block, follows no link, and reads no device.

    Args:
        path: the file.
        start: the byte at which to begin.
        most: the largest number of bytes from there.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it is no regular file, is too large, or cannot be read.
    """
    shown = printable(str(path))
    try:
        _check_regular(shown, os.lstat(path).st_mode)  # a device is not even opened
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags), "rb") as file:
            _check_regular(shown, os.fstat(file.fileno()).st_mode)
            file.seek(start)
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(shown, None, unreadable(error)) from error
    if len(content) > most:
        raise DataError(shown, None, f"is larger than {most} bytes")
    return content


def unreadable(error: OSError) -> str:
    """Why a file or a folder cannot be read, and what to do about it."""
    hint = "; run the command as its owner" if isinstance(error, PermissionError) else ""
    return f"cannot be read: {error.strerror}{hint}"


def _check_regular(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise DataError(path, None, f"is {kind}, and must be a regular file")


def append_to_file(path: Path, data: bytes) -> None:
    """Appends to a file of a run, which it makes if there is none; never waits for a reader."""
    with open(os.open(path, _WRITES | os.O_APPEND, 0o666), "ab") as file:
        file.write(data)


def write_file(path: Path, text: str) -> None:
    """Replaces a file of a run; a character without an encoding is written as an escape."""
    with open(os.open(path, _WRITES | os.O_TRUNC, 0o666), "wb") as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def status_of_file(path: Path) -> os.stat_result | None:
    """Size and times of a file of a run; None if it does not exist or cannot be reached."""
    try:
        return os.lstat(path)
    except OSError:
        return None


def read_json(path: Path, *, most: int = _RECORD_BYTES) -> Any:
    """The JSON value in a file of a run.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it cannot be read by `read_file`, or is not JSON.
    """
    return parse_json(path, read_file(path, most=most))


def parse_json(path: Path, text: bytes) -> Any:
    """The JSON value of `text`, which is in `path`; raises DataError if it is none."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        what = f"is not JSON: {printable(reason_of(str(error)))}; it is truncated or damaged"
        raise DataError(printable(str(path)), None, what) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def read_record(kind: type[_Record], path: Path, *, most: int = _RECORD_BYTES) -> _Record:
    """The record in a file of a run, with a value of the right type in each field.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it cannot be read, or is no such record.
    """
    return parse_record(kind, path, read_json(path, most=most))


def parse_record(kind: type[_Record], path: Path, value: Any) -> _Record:
    """The JSON value of `path` as a record of this kind; raises DataError if it is none."""
    try:
        record: _Record = _value_of(kind, value, "")
    except (ValueError, OverflowError) as error:
        what = (
            f"is no {kind.__name__} of this version of tfdist: {printable(str(error))}; use the "
            "version that has made the run, unless another program has written the file"
        )
        raise DataError(printable(str(path)), None, what) from error
    return record


_hints = functools.cache(get_type_hints)


def _value_of(kind: Any, value: Any, field: str) -> Any:
    """The value of a field, with printable texts; raises ValueError if it has another type."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            kind = types.NoneType
        else:
            [kind] = (one for one in args if one is not types.NoneType)
        return _value_of(kind, value, field)
    if is_dataclass(kind) and isinstance(value, dict):
        return _record_of(kind, value, field)
    if origin is tuple and isinstance(value, list):
        return tuple(_value_of(args[0], one, field) for one in value)
    if origin is list and isinstance(value, list):
        return [_value_of(args[0], one, field) for one in value]
    if origin is dict and isinstance(value, dict):
        return {printable(key): _value_of(args[1], one, field) for key, one in value.items()}
    if kind is float and type(value) is int:
        value = float(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if type(value) is not kind:
        raise ValueError(f"{field or 'the value'} has the type {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{field} is not finite")
    if kind is int and abs(value) > LARGEST:
        raise ValueError(f"{field} is larger than 2**64")
    return printable(value) if kind is str else value


def _record_of(kind: Any, values: Mapping[str, Any], field: str) -> Any:
    known = {one.name: one for one in fields(kind)}
    if unknown := values.keys() - known.keys():
        raise ValueError(f"it has an unknown field {min(unknown)}")
    for name, one in known.items():
        if name not in values and one.default is MISSING:
            raise ValueError(f"it has no field {name}")
    hints = _hints(kind)
    given = {
        name: _value_of(hints[name], value, f"{field}.{name}" if field else name)
        for name, value in values.items()
    }
    return kind(**given)
