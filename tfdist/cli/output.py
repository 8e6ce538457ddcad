"""Output of the commands: pipes whose reader closes them, lines of tasks, the summary of a run."""

from __future__ import annotations

import math
import os
import re
import select
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from rich.box import SIMPLE
from rich.table import Table

from tfdist.diagnosis.status import SafeConsole, line_width
from tfdist.errors import READER_LEFT, printable
from tfdist.runs.folder import RunFolder, TaskRecord, describe_end

_STANDARD_STREAMS = (1, 2)
_COLORS = (36, 33, 32, 35, 34, 31)  # ANSI: cyan, yellow, green, magenta, blue, red
# A carriage return at the end of the data may be the first half of "\r\n".
_LINE_END = re.compile(rb"(\n|\r\n|\r(?!$))")
_LONGEST = 65536
_UPDATE_SECS = 1.0
# Control characters other than tabs, and of those what does not set a color. The first is fast.
_SIGNS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
_CONTROL = re.compile(_SIGNS)
_HOSTILE = re.compile(rf"\x1b(?!\[[0-9;]*m)|(?!\x1b){_SIGNS}")
_LONGEST_NAME = len("worker:00")


class PipeConsole(SafeConsole):
    """Does not wrap lines in a pipe, and raises BrokenPipeError, where rich exits with code 1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.width = line_width(self)

    def on_broken_pipe(self) -> NoReturn:
        """Raises BrokenPipeError."""
        raise BrokenPipeError


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Ends a command silently if the reader of its standard streams has closed them.

    Raises:
        SystemExit: the reader has closed a stream; the exit code is 141.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # None if it was closed before the start
                sys.stdout.flush()
    except BrokenPipeError:
        if not drop_unread():
            raise
        sys.exit(READER_LEFT)


def open_closed_streams() -> None:
    """Discards what is written to a standard stream that was closed before the start.

    Otherwise the next file that is opened would get the stream's descriptor.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(descriptor, number)
                os.close(descriptor)
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def drop_unread() -> bool:
    """True if a standard stream has no reader; later output to that stream is discarded."""
    poll = select.poll()
    for stream in _STANDARD_STREAMS:
        poll.register(stream, 0)
    unread = [stream for stream, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for stream in unread:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream)
        os.close(nowhere)
    return bool(unread)


def say(line: str) -> None:
    """Prints a line of tfdist on standard error; a terminal obeys nothing in it."""
    print(f"tfdist: {printable(line)}", file=sys.stderr, flush=True)


class Lines:
    """Splits the output of a stream into lines, in time that is linear in its length.

    A line that is longer than 64 KiB comes in pieces. A carriage return ends the update of a
    progress bar: of the updates, one per second is a line.

    Args:
        clock: returns seconds that never decrease.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_update = -math.inf
        self._rest = self._update = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`."""
        if self._rest.endswith(b"\r"):
            self._rest, data = self._rest[:-1], b"\r" + data
        parts = _LINE_END.split(data)
        parts[0] = self._rest + parts[0]
        found = []
        for text, end in zip(parts[::2], parts[1::2], strict=False):
            if end != b"\r":
                found.append(text)
                self._update = b""
            elif text:
                self._update = text
                if self._clock() >= self._next_update:
                    found.append(text)
                    self._next_update, self._update = self._clock() + _UPDATE_SECS, b""
        rest = parts[-1]
        cut = len(rest) - len(rest) % _LONGEST
        found += [rest[start : start + _LONGEST] for start in range(0, cut, _LONGEST)]
        self._rest = rest[cut:]
        return found

    def rest(self) -> list[bytes]:
        """The unfinished line at the end, or the last update."""
        last = self._rest or self._update
        return [last] if last else []


def shown(line: bytes) -> str:
    """The line as text that a terminal shows and does not obey, apart from colors."""
    text = line.decode(errors="replace")
    if _CONTROL.search(text) is None:
        return text
    return _HOSTILE.sub(lambda found: repr(found[0])[1:-1], text)


class Output:
    """Prints whole lines of the tasks on this process's streams.

    Args:
        prefix: whether to print the task's name in front of each line.
        all_on_stderr: whether standard output is reserved for a JSON object.
    """

    def __init__(self, *, prefix: bool, all_on_stderr: bool) -> None:
        self._prefix, self._all_on_stderr = prefix, all_on_stderr
        self._lock = threading.Lock()
        self._streams: dict[tuple[str, int], Lines] = {}
        self._cannot_write = False
        self._colors: dict[str, int] = {}

    @property
    def columns(self) -> int:
        """The width that a task's lines may have."""
        width = shutil.get_terminal_size().columns
        return width - (_LONGEST_NAME + 3 if self._prefix else 0)

    def write(self, name: str, stream: int, data: bytes) -> None:
        """Prints the lines in `data` of a task's stream 1 or 2; keeps an unfinished line."""
        with self._lock:
            for line in self._streams.setdefault((name, stream), Lines()).feed(data):
                self._print(name, stream, line)

    def flush(self) -> None:
        """Prints unfinished lines too."""
        with self._lock:
            for (name, stream), lines in self._streams.items():
                for line in lines.rest():
                    self._print(name, stream, line)
            self._streams.clear()

    def _print(self, name: str, stream: int, line: bytes) -> None:
        file = sys.stderr if stream == 2 or self._all_on_stderr else sys.stdout
        prefix = self._prefix_of(name, colored=file.isatty()) if self._prefix else ""
        # SIGPIPE ends the run if the reader has left; until then the task may continue.
        try:
            print(prefix + shown(line), file=file, flush=True)
        except BrokenPipeError:
            pass
        except OSError as error:  # such as of a full disk; it must not end the job
            self.complain(f"cannot write the output of the tasks: {error.strerror}")

    def complain(self, what: str) -> None:
        """Says on standard error what cannot be written, once; never raises."""
        if not self._cannot_write:
            self._cannot_write = True
            with suppress(OSError, ValueError):
                say(f"{what}; the job continues")

    def _prefix_of(self, name: str, *, colored: bool) -> str:
        color = self._colors.setdefault(name, _COLORS[len(self._colors) % len(_COLORS)])
        text = f"[{name}]"
        return f"\033[{color}m{text}\033[0m " if colored else f"{text} "


class ShownRun(RunFolder):
    """The folder of a run, which also prints the tasks' output on this process's streams."""

    def __init__(self, path: str, output: Output) -> None:
        super().__init__(path)
        self._output = output

    def started(self, name: str, attempt: int, pid: int) -> None:
        """Records the start of an attempt; prints a line if it is a restart."""
        super().started(name, attempt, pid)
        if attempt > 1:
            before = next(
                record
                for record in self.records()
                if (record.name, record.attempt) == (name, attempt - 1)
            )
            end = f"attempt {attempt - 1}: {describe_end(before)}"
            say(f"restarted {name} (attempt {attempt}); {end}")

    def output(self, name: str, attempt: int, stream: int, data: bytes) -> None:
        """Prints the data and appends it to the file of the stream, if the disk allows that."""
        self._output.write(name, stream, data)
        try:
            super().output(name, attempt, stream, data)
        except OSError as error:
            self._output.complain(f"cannot write to {self.path}: {error.strerror}")


def summary_table(records: Sequence[TaskRecord]) -> Table:
    """A table with a row for each attempt of each task."""
    table = Table(box=SIMPLE)
    table.add_column("task", no_wrap=True)
    again = any(record.attempt > 1 for record in records)
    if again:
        table.add_column("attempt", justify="right", no_wrap=True)
    table.add_column("end", no_wrap=True)
    for title in ("seconds", "CPU s", "peak MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        used = record.usage
        table.add_row(
            record.name,
            *([str(record.attempt)] if again else []),
            describe_end(record),
            f"{record.seconds:.1f}",
            f"{used.cpu_secs:.1f}" if used else "?",
            f"{used.peak_bytes / 1e6:.0f}" if used else "?",
        )
    return table


def summary_json(record: TaskRecord) -> dict[str, Any]:
    """The row of an attempt, for JSON."""
    return {
        "task": record.name,
        "attempt": record.attempt,
        "exit_code": record.exit_code,
        "terminated": record.terminated,
        "seconds": round(record.seconds, 3),
        "cpu_secs": record.usage and round(record.usage.cpu_secs, 3),
        "peak_bytes": record.usage and record.usage.peak_bytes,
    }
