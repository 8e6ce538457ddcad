"""Accounts for the examples of an epoch: none may be missing, and none may be read twice.

A ledger keeps half-open ranges of example numbers. What a trainer reads is contiguous or becomes
so, and a million examples end up as one range. `tfdist.train.Epoch` carries the ledgers of all
trainers to the chief.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfdist.errors import ConfigError, EpochError, checked_integer, checked_path, checked_several

Range = tuple[int, int]

_Numbers = NDArray[np.int64]

_COMPACT_AT = 65_536  # numbers
MOST = 2**62  # _edges needs one bit for a sign
_NUMBER_RULE = "must be at least 0 and below 2**62"
_RANGE_RULE = "must satisfy 0 <= start < stop <= 2**62"
_KEY = "tfdist_ledger"


@dataclass(frozen=True)
class Audit:
    """A ledger compared with an epoch in which every example is read exactly once.

    Attributes:
        expected: number of examples in the epoch; they are numbered from 0.
        read_once: number of examples that were read exactly once.
        missing: ranges of examples that were not read.
        duplicates: ranges of examples that were read more than once.
    """

    expected: int
    read_once: int
    missing: tuple[Range, ...]
    duplicates: tuple[Range, ...]

    @property
    def exactly_once(self) -> bool:
        """True if every example was read exactly once."""
        return not self.missing and not self.duplicates

    def check(self) -> None:
        """Raises EpochError unless every example was read exactly once."""
        if not self.exactly_once:
            raise EpochError(
                f"{self.read_once} of {self.expected} examples were read exactly once; "
                f"missing {_shown(self.missing)}; duplicates {_shown(self.duplicates)}",
                missing=self.missing,
                duplicates=self.duplicates,
            )


class Ledger:
    """Records which examples were read, and how often.

    Args:
        ranges: half-open ranges of examples that were read; they may overlap.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        try:
            pairs = list(ranges)
            if any(isinstance(pair, (bytes, bytearray)) for pair in pairs):
                raise TypeError("bytes")
            bounds = _whole([bound for start, stop in pairs for bound in (start, stop)])
        except (TypeError, ValueError, AttributeError):
            raise ConfigError("ranges", ranges, "must be pairs of integers") from None
        try:
            self._ranges = np.array(bounds, np.int64).reshape(-1, 2)
        except OverflowError:
            raise ConfigError("ranges", ranges, _RANGE_RULE) from None
        starts, stops = self._ranges.T
        for wrong in self._ranges[(starts < 0) | (starts >= stops) | (stops > MOST)].tolist():
            raise ConfigError("ranges", tuple(wrong), _RANGE_RULE)
        self._pending: list[_Numbers] = []  # numbers that are not in ranges yet
        self._pending_size = 0

    def add(self, examples: Iterable[int]) -> int:
        """Records one read of each example: whole numbers from 0, in any order.

        A NumPy array is fastest.

        Returns:
            The number of examples.
        """
        numbers = _as_numbers(examples)
        if not numbers.size:
            return 0
        for extreme in (int(numbers.min()), int(numbers.max())):
            if not 0 <= extreme < MOST:
                raise ConfigError("examples", extreme, _NUMBER_RULE)
        self._pending.append(numbers)
        self._pending_size += numbers.size
        # Shuffled numbers join into ranges late. Compacting only once the ledger has doubled
        # bounds the cost of sorting them again.
        if self._pending_size > _COMPACT_AT + 2 * len(self._ranges):
            self._compact()
        return numbers.size

    def merge(self, other: Ledger) -> None:
        """Records everything that `other` recorded."""
        if not isinstance(other, Ledger):
            raise ConfigError("other", other, "must be a Ledger")
        other._compact()
        self._ranges = np.concatenate([self._ranges, other._ranges])

    def ranges(self) -> tuple[Range, ...]:
        """The fewest ranges for all reads; they overlap where an example was read again."""
        self._compact()
        return _tuples(self._ranges)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the ledger as a JSON file for `audit`, atomically. Use one file per trainer.

        Raises:
            ConfigError: `path` is a folder.
        """
        path = checked_path("path", path)
        check_no_folder(path)
        unfinished = f"{path}.unfinished"
        Path(unfinished).write_text(json.dumps({_KEY: self.ranges()}), encoding="utf-8")
        os.replace(unfinished, path)

    def audit(self, expected: int) -> Audit:
        """Compares the ledger with one read of each of the examples 0 to `expected` - 1.

        Raises:
            ConfigError: an example beyond that range was read.
        """
        expected = checked_integer("expected", expected, 0, MOST)
        self._compact()
        last = int(self._ranges[:, 1].max(initial=0)) - 1
        if last >= expected:
            raise ConfigError(
                "expected",
                expected,
                f"must be larger than {last}, the largest example that was read",
            )
        edges, steps = _edges(self._ranges)
        bounds = np.concatenate([[0], edges, [expected]])
        depths = np.concatenate([[0], np.cumsum(steps)])
        pieces = np.stack([bounds[:-1], bounds[1:]], 1)
        sizes = pieces[:, 1] - pieces[:, 0]
        return Audit(
            expected,
            read_once=int(sizes[depths == 1].sum()),
            missing=_tuples(pieces[(depths == 0) & (sizes > 0)]),
            duplicates=_tuples(_joined(pieces[depths > 1])),
        )

    def _compact(self) -> None:
        """Replaces ranges and pending numbers by the fewest ranges, in order."""
        numbers = np.concatenate([np.empty(0, np.int64), *self._pending])
        reads = np.concatenate([self._ranges, _runs(numbers)])
        self._pending, self._pending_size = [], 0
        edges, steps = _edges(reads)
        edges, signs = np.repeat(edges, np.abs(steps)), np.repeat(np.sign(steps), np.abs(steps))
        # The level of an edge is the number of reads that are open below it. On one level, edges
        # that begin and end a read alternate, so each two in a row are a range.
        levels = np.cumsum(signs) - (signs > 0)
        if levels.any():
            ranges = edges[np.lexsort((edges, levels))].reshape(-1, 2)
            self._ranges = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))]
        else:
            self._ranges = edges.reshape(-1, 2)


def audit(ledgers: Iterable[Ledger | str | os.PathLike[str]], expected: int) -> Audit:
    """Compares the ledgers of all trainers together with one read of each of `expected` examples.

    Args:
        ledgers: ledgers, or files that `Ledger.save` wrote.
        expected: number of examples in the epoch; they are numbered from 0.

    Raises:
        ConfigError: a file is not a ledger, or an example has a number beyond `expected`.
    """
    ledger = Ledger()
    for each in checked_several("ledgers", ledgers, "must be a list of ledgers, or of their files"):
        ledger.merge(each if isinstance(each, Ledger) else _load(each))
    return ledger.audit(expected)


def check_no_folder(path: str | os.PathLike[str]) -> None:
    """Raises ConfigError if a file cannot be written at `path`, because it is a folder."""
    if os.path.isdir(path):
        raise ConfigError("path", os.fspath(path), "is a folder; give the path of a file")


def _load(path: str | os.PathLike[str]) -> Ledger:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return Ledger((start, stop) for start, stop in found[_KEY])
    except (OSError, ValueError, TypeError, KeyError) as error:
        rule = f"is not a file that Ledger.save wrote: {error}"
        raise ConfigError("ledgers", path, rule) from error


def _as_numbers(examples: Iterable[int]) -> _Numbers:
    if isinstance(examples, np.ndarray) and np.issubdtype(examples.dtype, np.integer):
        return examples.astype(np.int64).ravel()  # a copy, since the caller may reuse the array
    try:
        numbers = _whole(examples)
    except (TypeError, AttributeError):
        raise ConfigError("examples", examples, "must be whole numbers") from None
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        raise ConfigError("examples", examples, _NUMBER_RULE) from None


def _whole(numbers: Iterable[int]) -> list[int]:
    """The numbers as a list of Python's integers; raises TypeError or AttributeError for others.

    The bytes of a text are no numbers, and neither are True and False.
    """
    if isinstance(numbers, (bytes, bytearray, memoryview)):
        raise TypeError("bytes")
    given = list(numbers)
    if any(kind is bool for kind in set(map(type, given))):
        raise TypeError("bool")
    return list(map(operator.index, given))


def _runs(numbers: _Numbers) -> _Numbers:
    """Numbers as ranges; a repeated number begins a new range."""
    numbers.sort()
    inner = np.flatnonzero(np.diff(numbers) == 1)
    return np.stack([np.delete(numbers, inner + 1), np.delete(numbers, inner) + 1], 1)


def _edges(ranges: _Numbers) -> tuple[_Numbers, _Numbers]:
    """Positions at which ranges begin or end, sorted; and there, the begins minus the ends."""
    # The last bit of a number is its sign, since sorting numbers is far faster than sorting pairs.
    sides = np.sort((2 * ranges + np.array([0, 1])).ravel())
    positions, signs = sides >> 1, 1 - 2 * (sides & 1)
    first = np.flatnonzero(np.diff(positions, prepend=-1))
    steps = np.add.reduceat(signs, first)
    return positions[first][steps != 0], steps[steps != 0]


def _joined(ranges: _Numbers) -> _Numbers:
    """Sorted ranges, with adjacent ranges joined."""
    starts, stops = ranges.T
    inner = np.flatnonzero(starts[1:] == stops[:-1])
    return np.stack([np.delete(starts, inner + 1), np.delete(stops, inner)], 1)


def _tuples(ranges: _Numbers) -> tuple[Range, ...]:
    return tuple((start, stop) for start, stop in ranges.tolist())


def _shown(ranges: Sequence[Range], most: int = 5) -> str:
    if not ranges:
        return "none"
    shown = ", ".join(f"[{start}, {stop})" for start, stop in ranges[:most])
    return shown + (f" and {len(ranges) - most} more ranges" if len(ranges) > most else "")
