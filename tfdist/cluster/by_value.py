"""Functions that another process cannot import: lambdas, those of notebooks and of `python -`."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle

from tfdist.errors import ConfigError
from tfdist.task import Task


def portable(function: Callable[[Task], object]) -> Callable[[Task], object]:
    """The function in a form that pickles: as it is, if another process can import it.

    Raises:
        ConfigError: it refers to what does not pickle, such as a lock or an open file.
    """
    if _can_be_imported(sys.modules["__main__"]):
        with contextlib.suppress(Exception):  # such as of a lambda
            ForkingPickler.dumps(function)
            return function
    try:
        return ByValue(cloudpickle.dumps(function))
    except Exception as error:
        rule = f"cannot be sent to another process: {error}"
        raise ConfigError("function", function, rule) from error


class ByValue:
    """A function that is sent with its code; what it returns may be of a class of its own."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def load(self) -> None:
        """Makes the function, in the process that calls it."""
        self._function = pickle.loads(self._data)

    def __call__(self, task: Task) -> object:
        """Calls the function, which `load` has made."""
        return self._function(task)

    @staticmethod
    def dumps(value: Any) -> bytes:
        """Pickles a value with its class, if no other process can import that."""
        data: bytes = cloudpickle.dumps(value)
        return data


@contextlib.contextmanager
def without_program() -> Iterator[None]:
    """Keeps a process that starts in the block from importing a program that has no file.

    `python -` names its program ``<stdin>``, and `multiprocessing` would look for that file.
    """
    main = sys.modules["__main__"]
    if _can_be_imported(main) or "__file__" not in vars(main):
        yield
        return
    path = vars(main).pop("__file__")
    try:
        yield
    finally:
        vars(main)["__file__"] = path


def _can_be_imported(main: Any) -> bool:
    """Whether the processes of `multiprocessing` can import the program itself."""
    path = getattr(main, "__file__", None)
    return main.__spec__ is not None or (path is not None and os.path.isfile(path))
