"""What can go wrong, as one tree.

::

    TfdistError
    |- ConfigError       (ValueError)       bad input: field, value, rule
    |- ClusterError
    |  |- StartTimeout   (TimeoutError)     tasks that did not get ready
    |  |- RunTimeout     (TimeoutError)     tasks that did not end
    |  |- StallError                        nobody got on any more
    |  `- TaskFailed                        the earliest task that failed
    |- BarrierError
    |  |- BarrierTimeout (TimeoutError, threading.BrokenBarrierError)
    |  `- BrokenBarrierError  (threading.BrokenBarrierError)
    |- EpochError                           missing and duplicate examples
    |- SplitLostError                            a split that was taken from its trainer
    `- DataError                            a file of the input: path, offset, what is wrong

Errors of TensorFlow pass through unchanged, or are chained as the cause of one of these.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Mapping, Sequence

# What comes before the reason in an error of TensorFlow 2.21.
_HEADING = re.compile(
    r"$|Graph execution error:$|Detected at node |File \"|Node: '|From /job:|<stack traces unav"
)


class TfdistError(Exception):
    """Base of every error that tfdist raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from a task's process to the one that waits for it. The default way
        # calls __init__ with the message alone, which fails for the subclasses below.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[TfdistError], args: tuple[object, ...], attributes: dict[str, object]
) -> TfdistError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigError(TfdistError, ValueError):
    """Bad input, found before anything was started or changed.

    Attributes:
        field: what was wrong, as the user spells it (a flag, a key, a parameter).
        value: what it was.
        rule: what it should have been.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: got {value!r}; {rule}")
        self.field = field
        self.value = value
        self.rule = rule


class ClusterError(TfdistError):
    """Something about the cluster's tasks."""


class StartTimeout(ClusterError, TimeoutError):
    """Some tasks were not ready in time.

    Attributes:
        missing: names of the tasks that were not ready, such as ``"ps:1"``.
        timeout: seconds waited.
    """

    def __init__(self, missing: Sequence[str], timeout: float, hint: str) -> None:
        super().__init__(f"not ready after {timeout:.1f} s: {', '.join(missing)}. {hint}")
        self.missing = tuple(missing)
        self.timeout = timeout


class RunTimeout(ClusterError, TimeoutError):
    """Some tasks had not ended in time.

    Attributes:
        running: names of the tasks that were still running.
        timeout: seconds waited.
    """

    def __init__(self, running: Sequence[str], timeout: float) -> None:
        super().__init__(f"still running after {timeout:.1f} s: {', '.join(running)}")
        self.running = tuple(running)
        self.timeout = timeout


class StallError(ClusterError):
    """No task of the job made progress for too long.

    Attributes:
        seconds: since the last progress.
        last: the last progress, such as ``"worker:1 passed a barrier"``.
        places: the progress of each trainer, by name.
        report: path of the report, if it is kept.
        verdict: a `tfdist.diagnosis.verdict.Verdict`, or None if none was made.
    """

    def __init__(
        self,
        seconds: float,
        last: Sequence[str],
        places: Mapping[str, str],
        report: str | None = None,
        verdict: object | None = None,
    ) -> None:
        parts = [
            f"no task has made progress for {seconds:.1f} s",
            *([str(verdict)] if verdict is not None else []),
            *([f"last progress: {', '.join(last)}"] if last else []),
            *(f"{name}: {place}" for name, place in places.items()),
            *([f"the report is in {report}"] if report is not None else []),
        ]
        super().__init__("; ".join(parts))
        self.seconds = seconds
        self.last = tuple(last)
        self.places = dict(places)
        self.report = report
        self.verdict = verdict


class TaskFailed(ClusterError):
    """A task of the cluster failed; this is the earliest one, so most likely the cause.

    Attributes:
        task_name: such as ``"worker:1"``.
        exit_code: its exit code, or minus the number of the signal that killed it; None for
            a task that is a thread.
        details: its traceback, or the little that is known.
    """

    def __init__(self, task_name: str, exit_code: int | None, details: str) -> None:
        how = "raised an error" if exit_code is None else _how_it_ended(exit_code)
        super().__init__(f"{task_name} {how}\n{details}".rstrip())
        self.task_name = task_name
        self.exit_code = exit_code
        self.details = details


def _how_it_ended(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code} ({signal_name(-exit_code)})"
    return f"ended with exit code {exit_code}"


def signal_name(number: int) -> str:
    """Such as "SIGKILL", or "SIGRTMIN+6" for one that has no name of its own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - signal.SIGRTMIN:+d}"


class BarrierError(TfdistError):
    """Base of what a barrier raises."""


class BarrierTimeout(BarrierError, TimeoutError, threading.BrokenBarrierError):
    """Not everybody arrived in time.

    Attributes:
        name: the barrier's name.
        generation: the generation that was waited for.
        arrived: names of the trainers that have arrived in it.
        missing: names of those that have not.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str,
        generation: int,
        arrived: Sequence[str],
        missing: Sequence[str],
    ) -> None:
        super().__init__(message)
        self.name = name
        self.generation = generation
        self.arrived = tuple(arrived)
        self.missing = tuple(missing)


class BrokenBarrierError(BarrierError, threading.BrokenBarrierError):
    """The barrier is of no use until it is reset.

    Attributes:
        name: the barrier's name.
        reason: who broke it and why.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"barrier {name!r} is broken: {reason}")
        self.name = name
        self.reason = reason


class EpochError(TfdistError):
    """An epoch in which some examples were not read, or read more than once.

    Attributes:
        missing: half-open ranges ``(start, stop)`` of examples that nobody read.
        duplicates: ranges of examples that were read more than once.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[tuple[int, int]],
        duplicates: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.duplicates = tuple(duplicates)


class SplitLostError(TfdistError):
    """A trainer that must not go on with its split: it may be another's by now.

    Attributes:
        rank: of the trainer.
        reason: what it has lost, and why.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(
            f"the trainer of rank {rank} has lost what it held: {reason}. What it has read and "
            "not committed may be read twice; claim another split"
        )
        self.rank = rank
        self.reason = reason


class DataError(TfdistError):
    """A file of the input that cannot be read, is damaged, or has changed since it was scanned.

    Attributes:
        path: the file.
        offset: the byte where the damage begins, in a compressed file the byte of its
            uncompressed contents; None if it is about the whole file.
        what: what is wrong.
    """

    def __init__(self, path: str, offset: int | None, what: str) -> None:
        super().__init__(f"{path}: {'' if offset is None else f'at byte {offset}: '}{what}")
        self.path = path
        self.offset = offset
        self.what = what


def reason_of(text: str) -> str:
    """The line of an error's text that says why; TensorFlow's headings and stacks do not."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if not _HEADING.match(line)), "")
