"""What the tasks print, line by line, each with the name of its task."""

from __future__ import annotations

import shutil
import sys
import threading
from contextlib import suppress

_COLOURS = (36, 33, 32, 35, 34, 31)  # ANSI: cyan, yellow, green, magenta, blue, red
_LONGEST_NAME = len("worker:00")


class Output:
    """Passes whole lines of the tasks on to this process's streams.

    Args:
        prefix: whether the task's name stands in front of each line.
        all_on_stderr: keeps standard output free, for a JSON object.
    """

    def __init__(self, *, prefix: bool, all_on_stderr: bool) -> None:
        self._prefix, self._all_on_stderr = prefix, all_on_stderr
        self._lock = threading.Lock()
        self._rests: dict[tuple[str, int], bytes] = {}
        self._colours: dict[str, int] = {}

    @property
    def columns(self) -> int:
        """How wide a task's lines may be."""
        width = shutil.get_terminal_size().columns
        return width - (_LONGEST_NAME + 3 if self._prefix else 0)

    def write(self, name: str, stream: int, data: bytes) -> None:
        """Takes bytes of a task's stream 1 or 2; an unfinished line waits for its rest."""
        with self._lock:
            *lines, rest = (self._rests.get((name, stream), b"") + data).split(b"\n")
            self._rests[name, stream] = rest
            for line in lines:
                self._print(name, stream, line)

    def flush(self) -> None:
        """Prints unfinished lines too."""
        with self._lock:
            for (name, stream), rest in self._rests.items():
                if rest:
                    self._print(name, stream, rest)
            self._rests.clear()

    def _print(self, name: str, stream: int, line: bytes) -> None:
        file = sys.stderr if stream == 2 or self._all_on_stderr else sys.stdout
        prefix = self._prefix_of(name, coloured=file.isatty()) if self._prefix else ""
        # A reader that has left ends the run by SIGPIPE; until then the task may go on.
        with suppress(BrokenPipeError):
            print(prefix + line.decode(errors="replace"), file=file, flush=True)

    def _prefix_of(self, name: str, *, coloured: bool) -> str:
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        text = f"[{name}]"
        return f"\033[{colour}m{text}\033[0m " if coloured else f"{text} "
