"""Sets up the logger `tfdist`, under which tfdist logs its own work: warnings by default."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

# `tfdist run -v` sets this variable for the tasks.
LEVEL_VARIABLE = "TFDIST_LOG_LEVEL"
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def show_log(verbosity: int) -> None:
    """Prints the log on standard error: with `verbosity` 1 from INFO, with 2 from DEBUG.

    Tasks that this process starts do the same.
    """
    level = _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    _print_from(level)
    if verbosity > 0:
        os.environ[LEVEL_VARIABLE] = logging.getLevelName(level)


def show_log_of_task(environ: Mapping[str, str]) -> None:
    """Prints the log of this task at its launcher's level; without one Python's defaults apply."""
    if level := environ.get(LEVEL_VARIABLE):
        _print_from(level)


def _print_from(level: int | str) -> None:
    log = logging.getLogger("tfdist")
    log.setLevel(level)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tfdist: %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False  # otherwise the script's root logger would print each line again
