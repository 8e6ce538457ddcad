"""The errors that tfdist raises on purpose, as one tree.

::

    TfdistError
    |- ConfigError       (ValueError)       wrong input: field, value, rule
    |- ClusterError
    |  |- StartTimeout   (TimeoutError)     some tasks did not become ready
    |  |- RunTimeout     (TimeoutError)     some tasks did not end
    |  |- StallError                        no task makes progress
    |  `- TaskFailed                        the earliest failure of a task
    |- BarrierError
    |  |- BarrierTimeout (TimeoutError, threading.BrokenBarrierError)
    |  `- BrokenBarrierError  (threading.BrokenBarrierError)
    |- EpochError                           missing and duplicate examples
    |- SplitLostError                       a trainer no longer owns its split
    |- ServerError                          the prediction server cannot be built or started
    `- DataError                            a damaged file: path, offset, what is wrong

TensorFlow's errors pass through unchanged, or are the `__cause__` of one of these.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

# Exit codes, the same for every command of tfdist. `tfdist node` is the task, and so ends with the
# script's own exit code. 128 + N means signal N, as in a shell.
HELD = 0  # the run succeeded, or what was checked holds
NOT_HELD = 1  # what was checked does not hold
USAGE = 2  # wrong input: a flag, a file, TF_CONFIG
TASK_FAILED = 70  # EX_SOFTWARE of sysexits.h
STALLED = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # SIGINT: Ctrl-C
READER_LEFT = 141  # SIGPIPE: no process reads the output
BY_SIGNAL = 128  # plus the number of another signal that ended the run

# The lines that precede the reason in an error's text (TensorFlow 2.21).
_HEADING = re.compile(
    r"$|Graph execution error:$|Detected at node |File \"|Node: '|From /job:|<stack traces unav"
)


# Control characters, line separators, marks that change the direction of a line, and surrogates.
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_LONGEST_VALUE = 2000  # characters of a wrong value in a message


class TfdistError(Exception):
    """Base of every error that tfdist raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        # A task's process sends its error to the launcher. The default __reduce__ calls
        # __init__ with the message alone, which fails for the subclasses below.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[TfdistError], args: tuple[object, ...], attributes: dict[str, object]
) -> TfdistError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigError(TfdistError, ValueError):
    """Wrong input, found before anything was started or changed.

    Attributes:
        field: the wrong flag, key or parameter, as the user spells it.
        value: its value; None if it is missing, True for a flag without a value.
        rule: what is wrong, or what the value must be, as a clause with a verb that completes the
            message: "must be at least 0", "cannot be combined with --classic-flags".
    """

    def __init__(self, field: str, value: object, rule: str, *, missing: bool = False) -> None:
        is_switch = value is True and field.startswith("--")
        got = "missing" if missing else f"got {_shown(value)}"
        super().__init__(f"{field} {rule}" if is_switch else f"{field}: {got}; {rule}")
        self.field = field
        self.value = value
        self.rule = rule


def _shown(value: object) -> str:
    """The value as Python writes it, shortened; never raises."""
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, maybe in a list; or a repr of the user's
        size = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        return f"a value of type {type(value).__name__}{size}, which cannot be shown"
    if len(text) <= _LONGEST_VALUE:
        return text
    return f"{text[:_LONGEST_VALUE]}... ({len(text)} characters)"


class ClusterError(TfdistError):
    """A cluster or one of its tasks cannot do what was asked."""


class StartTimeout(ClusterError, TimeoutError):
    """Some tasks were not ready in time.

    Attributes:
        missing: names of the tasks that were not ready, such as ``"ps:1"``.
        timeout: how long the caller waited, in seconds.
    """

    def __init__(self, missing: Sequence[str], timeout: float, hint: str) -> None:
        super().__init__(f"not ready after {timeout:.1f} s: {', '.join(missing)}. {hint}")
        self.missing = tuple(missing)
        self.timeout = timeout


class RunTimeout(ClusterError, TimeoutError):
    """Some tasks did not end in time.

    Attributes:
        running: names of the tasks that still ran.
        timeout: how long the caller waited, in seconds.
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
        report: path of the report; None if it is not kept.
        verdict: a `tfdist.diagnosis.verdict.Verdict`, or None.
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
        super().__init__("\n  ".join(parts))
        self.seconds = seconds
        self.last = tuple(last)
        self.places = dict(places)
        self.report = report
        self.verdict = verdict


class TaskFailed(ClusterError):
    """A task failed. Of several it is the earliest one, and so most likely the cause.

    Attributes:
        task_name: such as ``"worker:1"``.
        exit_code: its exit code, or minus the number of the signal that killed it; None for
            a thread.
        details: its traceback, or what else is known.
        how: such as ``"worker:1 ended with exit code 1"``.
    """

    def __init__(self, task_name: str, exit_code: int | None, details: str) -> None:
        ended = "raised an error" if exit_code is None else _how_it_ended(exit_code)
        self.how = f"{task_name} {ended}"
        super().__init__(f"{self.how}\n{details}".rstrip())
        self.task_name = task_name
        self.exit_code = exit_code
        self.details = details


def _how_it_ended(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by signal {-exit_code} ({signal_name(-exit_code)})"
    return f"ended with exit code {exit_code}"


def signal_name(number: int) -> str:
    """The name of a signal: "SIGKILL"; "SIGRTMIN+6" for a real-time signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN{number - signal.SIGRTMIN:+d}"


class BarrierError(TfdistError):
    """Base of the errors that a barrier raises."""


class BarrierTimeout(BarrierError, TimeoutError, threading.BrokenBarrierError):
    """Some trainers did not arrive at the barrier in time.

    Attributes:
        name: the barrier's name.
        generation: the generation that the trainer waited for.
        arrived: names of the trainers that have arrived in it.
        missing: names of the trainers that have not.
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
    """The barrier is broken: every wait at it fails until `reset`.

    Attributes:
        name: the barrier's name.
        reason: which trainer broke it, and why.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"barrier {name!r} is broken: {reason}")
        self.name = name
        self.reason = reason


class EpochError(TfdistError):
    """In an epoch some examples were not read, or were read more than once.

    Attributes:
        missing: half-open ranges ``(start, stop)`` of examples that no trainer read.
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
    """A trainer must not continue its split: another trainer may own it now.

    Attributes:
        rank: the rank of the trainer.
        reason: what it has lost, and why.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(
            f"the trainer of rank {rank} has lost its split: {reason}. Examples that it has read "
            "and not committed may be read twice; claim the next split"
        )
        self.rank = rank
        self.reason = reason


class ServerError(TfdistError):
    """The prediction server cannot be built or started, or has ended.

    Attributes:
        output: the last lines that the compiler or the server has printed.
    """

    def __init__(self, what: str, output: str) -> None:
        super().__init__(f"{what}:\n{output}" if output else what)
        self.output = output


class DataError(TfdistError):
    """A file of the input or of a checkpoint is missing, damaged or changed, or cannot be written.

    Attributes:
        path: the file.
        offset: the byte where the damage begins (in a compressed file: of its uncompressed
            contents); None if the error concerns the whole file.
        what: what is wrong.
    """

    def __init__(self, path: str, offset: int | None, what: str) -> None:
        super().__init__(f"{path}: {'' if offset is None else f'at byte {offset}: '}{what}")
        self.path = path
        self.offset = offset
        self.what = what


def checked_integer(
    field: str, value: Any, least: int | None = None, most: int | None = None
) -> int:
    """The value of a parameter as an int: numpy's integers are integers, a bool is not.

    Raises:
        ConfigError: it is no integer, or it is out of range.
    """
    if not _is_bool(value):
        with suppress(Exception):  # TensorFlow's tensors raise errors of several types
            number = operator.index(value)
            if (least is None or least <= number) and (most is None or number <= most):
                return number
    limits = "" if least is None else f", at least {least}"
    limits = limits if most is None else f" from {least} to {most}"
    raise ConfigError(field, value, f"must be a whole number{limits}")


def checked_secs(field: str, value: Any, *, may_be_0: bool = True, most: float = math.inf) -> float:
    """The value of a parameter as a number of seconds; NaN, a bool and a text are none.

    Raises:
        ConfigError: it is no number, or it is out of range.
    """
    limits = "at least 0" if may_be_0 else "more than 0"
    limits += "" if most == math.inf else f" and at most {most:g}"

    def is_right(secs: float) -> bool:
        return (secs >= 0 if may_be_0 else secs > 0) and secs <= most

    return checked_number(field, value, is_right, f"must be a number of seconds, {limits}")


def checked_number(field: str, value: Any, is_right: Callable[[float], bool], rule: str) -> float:
    """The value of a parameter as a float; a bool and a text are none.

    Raises:
        ConfigError: it is no number, or not a right one.
    """
    if isinstance(value, numbers.Real) and not _is_bool(value):
        with suppress(OverflowError):  # an integer or a fraction that no float can hold
            if is_right(number := float(value)):
                return number
    raise ConfigError(field, value, rule)


def checked_timeout(value: Any) -> float | None:
    """The value of a parameter `timeout`, which may be None.

    Raises:
        ConfigError: it is neither None nor a number of at least 0.
    """
    return None if value is None else checked_secs("timeout", value)


def checked_flag(field: str, value: Any) -> bool:
    """The value of a parameter that is True or False, also numpy's.

    Raises:
        ConfigError: it is anything else. The text "False" would count as true, and so would [0].
    """
    if not _is_bool(value):
        raise ConfigError(field, value, "must be True or False")
    return bool(value)


def checked_path(field: str, value: Any) -> str:
    """The value of a parameter that is a path: a text, or an `os.PathLike` of one.

    Raises:
        ConfigError: it is anything else, is empty, or no file can have that name.
    """
    with suppress(TypeError, UnicodeEncodeError):
        text = os.fspath(value)
        if isinstance(text, str) and text and b"\0" not in os.fsencode(text):
            return text
    raise ConfigError(field, value, "must be the path of a file")


def checked_several(field: str, value: Any, rule: str) -> Iterator[Any]:
    """Iterates over the value of a parameter; a text is one value, and not several.

    Raises:
        ConfigError: it is a text, or nothing to iterate over.
    """
    if not isinstance(value, (str, bytes)):
        with suppress(TypeError):
            return iter(value)
    raise ConfigError(field, value, rule)


def checked_names(field: str, value: Any) -> tuple[str, ...]:
    """The value of a parameter that is several texts; one text alone would be its characters.

    Raises:
        ConfigError: it is anything else.
    """
    rule = "must be a list of texts"
    names = tuple(checked_several(field, value, rule))
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(field, value, rule)
    return names


def checked_choice(field: str, value: Any, choices: Sequence[str]) -> Any:
    """The value of a parameter that is one of a few texts.

    Raises:
        ConfigError: it is anything else; numpy's arrays cannot even be compared with a text.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(field, value, f"must be one of {', '.join(choices)}")
    return value


def checked_action(
    field: str, value: Any, arguments: str = "without arguments", *, may_be_none: bool = True
) -> Any:
    """The value of a parameter that is a function to be called.

    A call of a generator or of a coroutine function runs nothing of its body, so these are refused:
    also a `functools.partial` of one, and an object whose `__call__` is one.

    Raises:
        ConfigError: it cannot be called, or its call would run nothing.
    """
    function = value
    while isinstance(function, functools.partial):
        function = function.func
    if callable(value):
        is_wrong = _is_lazy(function) or _is_lazy(type(function).__call__)
    else:
        is_wrong = value is not None or not may_be_none
    if is_wrong:
        or_none = ", or None" if may_be_none else ""
        rule = f"must be a function {arguments}{or_none}; no generator and no coroutine"
        raise ConfigError(field, value, rule)
    return value


def _is_lazy(function: object) -> bool:
    return (
        inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    )


def _is_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # numpy's, without its import


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """The end of a message on an unknown word: "; did you mean worker?", or ""."""
    close = difflib.get_close_matches(word, list(known), n=count)
    return f"; did you mean {', '.join(close)}?" if close else ""


def described(error: BaseException) -> str:
    """Type and reason of any error in one line that can be encoded; never raises."""
    try:
        reason = reason_of(str(error))
    except BaseException:  # `str` runs code of the user
        reason = "its text cannot be made"
    return printable(f"{type(error).__name__}: {reason}" if reason else type(error).__name__)


def printable(text: str) -> str:
    """The text with an escape for each character that a terminal obeys, or that has no encoding.

    Newlines and tabs stay.
    """
    return _NOT_PRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def reason_of(text: str) -> str:
    """The first line of an error's text that gives the reason: no heading, no stack trace."""
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if not _HEADING.match(line)), "")
