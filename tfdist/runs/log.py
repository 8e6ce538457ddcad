"""What tfdist logs about its own work, under the logger `tfdist`: warnings by default."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

# `tfdist run -v` sets it for the tasks.
LEVEL_VARIABLE = "TFDIST_LOG_LEVEL"
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def show_log(verbosity: int) -> None:
    """Prints the log on standard error: from INFO on for `verbosity` 1, all for 2 and more.

    The processes that this one starts do the same.
    """
    level = _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    _print_from(level)
    if verbosity > 0:
        os.environ[LEVEL_VARIABLE] = logging.getLevelName(level)


def show_log_of_task(environ: Mapping[str, str]) -> None:
    """Prints the log of this task as its launcher asked for; else Python's defaults apply."""
    if level := environ.get(LEVEL_VARIABLE):
        _print_from(level)


def _print_from(level: int | str) -> None:
    log = logging.getLogger("tfdist")
    log.setLevel(level)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tfdist: %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False  # a root logger of the script would print each line again
