"""A user's script as the function of a task."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tfdist.task import PROGRESS_VARIABLE, Task


@dataclass(frozen=True)
class Script:
    """Runs `path` with `arguments` as `python path arguments...` would, as each task.

    Attributes:
        path: of the script.
        arguments: what it finds in ``sys.argv[1:]``.
        progress_folder: where each task may note its progress, in a file of its name.
    """

    path: str
    arguments: Sequence[str]
    progress_folder: str

    def __call__(self, task: Task) -> None:
        """Runs it; `TF_CONFIG` tells it who it is."""
        os.environ[PROGRESS_VARIABLE] = os.path.join(self.progress_folder, task.name)
        sys.argv = [self.path, *self.arguments]
        sys.path.insert(0, os.path.dirname(os.path.abspath(self.path)))
        runpy.run_path(self.path, run_name="__main__")
