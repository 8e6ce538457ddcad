"""Sets up the logger `tfdist`, under which tfdist logs its own work: warnings by default."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from tfdist.runs.files import status_of_file

# `tfdist run -v` sets this variable for the tasks.
LEVEL_VARIABLE = "TFDIST_LOG_LEVEL"
_MARK_FILE = "logged"  # in the folder of the task
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def show_log(verbosity: int) -> None:
    """Prints the log on standard error: with `verbosity` 1 from INFO, with 2 from DEBUG.

    Tasks that this process starts do the same.
    """
    level = _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    _print_from(level)
    if verbosity > 0:
        os.environ[LEVEL_VARIABLE] = logging.getLevelName(level)


def show_log_of_task(environ: Mapping[str, str], folder: str | None) -> None:
    """Prints the log of this task at its launcher's level; without one Python's defaults apply.

    Args:
        environ: environment of the task.
        folder: where the task marks that it logs something; None for no mark.
    """
    if level := environ.get(LEVEL_VARIABLE):
        _print_from(level)
    if folder is not None:
        logging.getLogger("tfdist").handlers.insert(0, LogMark(folder))


class LogMark(logging.Handler):
    """Touches a file in `folder` before tfdist prints a line of its log.

    Otherwise the report of a long wait, which is output of the task, would count as progress. If
    the file cannot be touched, it does.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._path = Path(folder, _MARK_FILE).absolute()  # the script may change its directory

    def emit(self, record: logging.LogRecord) -> None:
        """Touches the file; prints the record if the script has no handler, as Python would."""
        with contextlib.suppress(OSError):
            self._path.touch()
        log = logging.getLogger("tfdist")
        is_alone = log.handlers == [self] and not (log.propagate and logging.root.handlers)
        if is_alone and logging.lastResort and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


def logged_at(folder: Path) -> int | None:
    """When a task last logged something, in ns since 1970, by its folder; None if it has not."""
    status = status_of_file(folder / _MARK_FILE)
    return None if status is None else status.st_mtime_ns


def _print_from(level: int | str) -> None:
    log = logging.getLogger("tfdist")
    log.setLevel(level)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tfdist: %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False  # otherwise the script's root logger would print each line again
