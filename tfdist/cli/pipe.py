"""Output into a pipe whose reader leaves early, such as `head`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

from tfdist.cli.exit_codes import READER_LEFT

_STANDARD_STREAMS = (1, 2)


class PipeConsole(Console):
    """Leaves a broken pipe to `reader_may_leave`; rich would end the program with exit code 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Raises BrokenPipeError."""
        raise BrokenPipeError


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Inside it a command whose standard streams nobody reads any more ends, without a word.

    Raises:
        SystemExit: that is so, with exit code 141.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as it is where it was closed
                sys.stdout.flush()
    except BrokenPipeError:
        if not drop_unread():
            raise
        sys.exit(READER_LEFT)


def drop_unread() -> bool:
    """Whether nobody reads a standard stream any more; what is still written there goes nowhere."""
    poll = select.poll()
    for stream in _STANDARD_STREAMS:
        poll.register(stream, 0)
    unread = [stream for stream, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for stream in unread:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)
    return bool(unread)
