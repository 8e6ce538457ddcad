"""An import of TensorFlow without what it writes to standard error meanwhile.

Some of its start-up lines come before its log level is read (TensorFlow 2.21), so the stream itself
is put aside. What an import raises is not lost: Python tells it afterwards.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType


@contextmanager
def standard_error_aside() -> Iterator[None]:
    """Inside it what this process writes to standard error goes nowhere."""
    aside = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(aside, 2)
        os.close(aside)
        os.close(nowhere)


def import_tensorflow_quietly() -> None:
    """Makes the import quiet that the program does by itself, after what is quickly found wrong."""
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds TensorFlow once, where the others find it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_quietly(module: ModuleType) -> None:
                with standard_error_aside():
                    execute(module)

            loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec
