"""Ends the process of a task as Python ends a program, but within a deadline."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from tfdist.errors import READER_LEFT

GRACE_SECS = 10.0  # by default, the longest time that an orderly end may take
_FLUSH_FAILED = 120  # Python's own exit code for this


def end_process(
    code: int, name: str, grace: float, then: Callable[[], int] | None = None
) -> NoReturn:
    """Joins all threads that are no daemons, runs the exit handlers, and exits with `code`.

    Python would then destroy TensorFlow's servers, which can block for ever; this process exits
    without that. If the threads and the handlers take longer than `grace` seconds, it prints one
    line and exits too; with 0 it does not run them.

    Args:
        code: exit code; 120 if it is 0 and the output cannot be written.
        name: of the task.
        grace: in seconds.
        then: called when the threads have ended; returns the exit code.
    """
    if grace > 0:
        limit = threading.Thread(target=_exit_late, args=(code, name, grace), daemon=True)
        limit.start()
        # Python ends a program with these two, and has no public function that does.
        threading._shutdown()  # type: ignore[attr-defined]
        if then is not None:
            code = then()
        atexit._run_exitfuncs()
    os._exit(_flushed(code))


def _exit_late(code: int, name: str, grace: float) -> None:
    time.sleep(grace)
    main = threading.main_thread()
    threads = [
        thread.name for thread in threading.enumerate() if thread is not main and not thread.daemon
    ]
    what = f"thread {', '.join(threads)}" if threads else "an exit handler"
    line = (
        f"tfdist: {name}: {what} still runs {grace:g} s after the end of the program; the process "
        "ends now. Raise --grace to wait longer\n"
    )
    os.write(2, line.encode(errors="replace"))
    os._exit(_flushed(code))


def _flushed(code: int) -> int:
    """Flushes the streams, which the program may have closed or replaced; the exit code then."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or getattr(stream, "closed", False):
            continue
        try:
            stream.flush()
        except BrokenPipeError:
            code = READER_LEFT
        except Exception as error:
            line = f"tfdist: the output could not be written: {error}\n"
            os.write(2, line.encode(errors="replace"))
            code = code or _FLUSH_FAILED
    return code
