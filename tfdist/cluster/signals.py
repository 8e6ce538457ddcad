"""Signals that end this process at once, wherever it is."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_on_signals() -> None:
    """From now on SIGTERM and SIGINT end this process, with 128 + the signal as its exit code.

    Python runs a signal's handler between two steps of the main thread, so never while that is
    inside of TensorFlow; and the first process of a container is not ended by a signal that it
    does not handle. So a thread waits for them. A signal that is ignored stays so, and so does a
    handler that the program installs later. Children that are forked do not inherit any of it.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(read_end,), name="signals", daemon=True).start()
    fork = _Fork()
    os.register_at_fork(
        before=fork.hold, after_in_parent=fork.release, after_in_child=fork.release_in_child
    )


def _wait(read_end: int) -> None:
    while True:
        for number in os.read(read_end, 1):
            if signal.getsignal(number) is _leave:
                _leave(number, None)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


class _Fork(threading.local):
    """Keeps a signal from a child until that has handlers of its own.

    The pipe is its parent's too, which would end in its place.
    """

    def hold(self) -> None:
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def release_in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is _leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.release()
