"""Output into a pipe whose reader leaves early, such as `head`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_READER_LEFT = 141  # 128 + SIGPIPE, as shells have it


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Inside it a command whose standard output nobody reads any more ends, without a word.

    Raises:
        SystemExit: that is so, with exit code 141.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left would be tried again at the end of the process.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        sys.exit(_READER_LEFT)
