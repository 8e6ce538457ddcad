"""A script as several tasks of one process, each with what it takes for its own.

A script asks its process who it is: the environment, the standard streams, `__main__`. Tasks that
are threads share all of these, so inside `shared_process` the environment and the streams look
different from each task's thread. A thread that a script starts by itself sees the process's own.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from tfdist.cluster.script import Script
from tfdist.task import Task

# Called with the name of a task, its stream (1 or 2), and what it writes.
Write = Callable[[str, int, bytes], None]


class _Own(threading.local):
    """What the present thread is: its task's name and variables, none outside of a task."""

    name: str | None = None
    variables: Mapping[str, str] = {}


_own = _Own()


@dataclass(frozen=True)
class ThreadScript:
    """Runs a script as `python script` would, but as a task that is a thread.

    Attributes:
        script: what to run. Its classic flags are not given, for `sys.argv` is one for all.
        variables: further environment variables of a task.
    """

    script: Script
    variables: Callable[[Task], Mapping[str, str]]

    def __call__(self, task: Task) -> None:
        """Runs it; `TF_CONFIG` tells it who it is."""
        _own.name = task.name
        _own.variables = {"TF_CONFIG": task.to_env(), **self.variables(task)}
        path = self.script.path
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec")
        # Not by runpy, which puts its module into sys.modules: one for all threads.
        exec(code, {"__name__": "__main__", "__file__": path, "__builtins__": __builtins__})


@contextmanager
def shared_process(script: Script, write: Write) -> Iterator[None]:
    """Inside it each task's thread has its own variables, and `write` gets what it prints."""
    before: tuple[Any, ...] = (os.environ, sys.stdout, sys.stderr, sys.argv, sys.path)
    os.environ = _Environ(os.environ)  # type: ignore[assignment]  # noqa: B003
    sys.stdout, sys.stderr = _Stream(sys.stdout, 1, write), _Stream(sys.stderr, 2, write)
    sys.argv = [script.path, *script.arguments]
    sys.path = [os.path.dirname(os.path.abspath(script.path)), *sys.path]
    try:
        yield
    finally:
        os.environ, sys.stdout, sys.stderr, sys.argv, sys.path = before


class _Environ(MutableMapping[str, str]):
    """The process's environment, with the variables of the present task before it."""

    def __init__(self, shared: MutableMapping[str, str]) -> None:
        self._shared = shared

    def __getitem__(self, name: str) -> str:
        own = _own.variables.get(name)
        return self._shared[name] if own is None else own

    def __setitem__(self, name: str, value: str) -> None:
        self._shared[name] = value

    def __delitem__(self, name: str) -> None:
        del self._shared[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._shared, **_own.variables})

    def __len__(self) -> int:
        return len({**self._shared, **_own.variables})

    def copy(self) -> dict[str, str]:
        """As of `os.environ`."""
        return dict(self)


class _Stream(io.TextIOBase):
    """A standard stream that is each task's own; elsewhere the process's."""

    def __init__(self, shared: TextIO, number: int, write: Write) -> None:
        self._shared, self._number, self._write = shared, number, write

    def write(self, text: str) -> int:
        name = _own.name
        if name is None:
            return self._shared.write(text)
        _own.name = None  # whatever that prints is the process's
        try:
            self._write(name, self._number, text.encode())
        finally:
            _own.name = name
        return len(text)

    def flush(self) -> None:
        self._shared.flush()

    def fileno(self) -> int:
        return self._shared.fileno()

    def isatty(self) -> bool:
        return _own.name is None and self._shared.isatty()

    def writable(self) -> bool:
        return True
