"""Which examples were read in an epoch: none may be missing, none may come twice.

Reads are kept as half-open ranges of example numbers, since what a trainer reads is contiguous,
or becomes so: a million reads cost one range in the end. The rules are pure;
`tfdist.train.Epoch` carries the ledgers of all trainers to the chief.
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

from tfdist.errors import ConfigError, EpochError

Range = tuple[int, int]

_Numbers = NDArray[np.int64]

_COMPACT_AT = 65_536  # numbers
_MOST = 2**62  # a bit is for the sign of an edge: see _edges
_KEY = "tfdist_reads"


@dataclass(frozen=True)
class Audit:
    """What a ledger says about an epoch of `expected` examples.

    Attributes:
        expected: how many examples the epoch has, numbered from 0.
        read: how many of them were read, once or more often.
        missing: ranges of examples that were not read.
        duplicates: ranges of examples that were read more than once.
    """

    expected: int
    read: int
    missing: tuple[Range, ...]
    duplicates: tuple[Range, ...]

    @property
    def complete(self) -> bool:
        """Whether every example was read exactly once."""
        return not self.missing and not self.duplicates

    @property
    def read_once(self) -> int:
        """How many examples were read exactly once."""
        return self.read - sum(stop - start for start, stop in self.duplicates)

    def check(self) -> None:
        """Raises EpochError unless every example was read exactly once."""
        if not self.complete:
            raise EpochError(
                f"read once: {self.read_once} of {self.expected} examples; "
                f"missing {_shown(self.missing)}; duplicates {_shown(self.duplicates)}",
                missing=self.missing,
                duplicates=self.duplicates,
            )


class Ledger:
    """Collects read examples; two reads of one example are remembered as such.

    Args:
        reads: half-open ranges to begin with.
    """

    def __init__(self, reads: Iterable[Range] = ()) -> None:
        ranges = np.array(list(reads), np.int64).reshape(-1, 2)
        starts, stops = ranges.T
        for wrong in ranges[(starts < 0) | (starts >= stops) | (stops > _MOST)].tolist():
            raise ConfigError("reads", tuple(wrong), "a range needs 0 <= start < stop <= 2**62")
        self._ranges = ranges
        self._pending: list[_Numbers] = []  # reads that are no ranges yet
        self._pending_size = 0

    def add(self, examples: Iterable[int]) -> int:
        """Records one read of each of `examples` (whole numbers from 0, in any order).

        Fastest is an array of NumPy, since nothing is done to each of its numbers here.

        Returns:
            How many reads these are.
        """
        numbers = _as_numbers(examples)
        if not numbers.size:
            return 0
        for extreme in (int(numbers.min()), int(numbers.max())):
            if not 0 <= extreme < _MOST:
                raise ConfigError("examples", extreme, "a number is at least 0, and below 2**62")
        self._pending.append(numbers)
        self._pending_size += numbers.size
        # Twice as many as there are, so that shuffled reads, which join late, are not sorted all
        # the time.
        if self._pending_size > _COMPACT_AT + 2 * len(self._ranges):
            self._compact()
        return numbers.size

    def merge(self, other: Ledger) -> None:
        """Records everything that `other` recorded."""
        other._compact()
        self._ranges = np.concatenate([self._ranges, other._ranges])

    def ranges(self) -> tuple[Range, ...]:
        """All reads as few ranges; ranges overlap where an example was read again."""
        self._compact()
        return _tuples(self._ranges)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the reads as a JSON file, whole or not at all; `audit` reads it.

        Each trainer writes a file of its own.
        """
        unfinished = f"{os.fspath(path)}.unfinished"
        Path(unfinished).write_text(json.dumps({_KEY: self.ranges()}), encoding="utf-8")
        os.replace(unfinished, path)

    def audit(self, expected: int) -> Audit:
        """Compares the reads with one read of each of the examples 0 .. expected - 1.

        Raises:
            ConfigError: an example outside of that range was read.
        """
        if expected < 0:
            raise ConfigError("expected", expected, "at least 0")
        self._compact()
        last = int(self._ranges[:, 1].max(initial=0)) - 1
        if last >= expected:
            raise ConfigError("expected", expected, f"examples up to {last} were read")
        edges, steps = _edges(self._ranges)
        bounds = np.concatenate([[0], edges, [expected]])
        depths = np.concatenate([[0], np.cumsum(steps)])
        pieces = np.stack([bounds[:-1], bounds[1:]], 1)
        sizes = pieces[:, 1] - pieces[:, 0]
        return Audit(
            expected,
            read=int(sizes[depths > 0].sum()),
            missing=_tuples(pieces[(depths == 0) & (sizes > 0)]),
            duplicates=_tuples(_joined(pieces[depths > 1])),
        )

    def _compact(self) -> None:
        """Makes as few ranges of all reads as can be, in order."""
        numbers = np.concatenate([np.empty(0, np.int64), *self._pending])
        reads = np.concatenate([self._ranges, _runs(numbers)])
        self._pending, self._pending_size = [], 0
        edges, steps = _edges(reads)
        edges, signs = np.repeat(edges, np.abs(steps)), np.repeat(np.sign(steps), np.abs(steps))
        # How many reads lie below each edge's own: edges that begin and end reads take turns on
        # each of these levels, so that two in a row are a range.
        levels = np.cumsum(signs) - (signs > 0)
        if levels.any():
            ranges = edges[np.lexsort((edges, levels))].reshape(-1, 2)
            self._ranges = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))]
        else:
            self._ranges = edges.reshape(-1, 2)


def audit(reads: Iterable[Ledger | str | os.PathLike[str]], expected: int) -> Audit:
    """What all trainers together have read, against one read of each of `expected` examples.

    Args:
        reads: ledgers, or the files that `Ledger.save` wrote.
        expected: how many examples there are, numbered from 0.

    Raises:
        ConfigError: a file is none of a ledger, or an example has a number that is too large.
    """
    ledger = Ledger()
    for each in reads:
        ledger.merge(each if isinstance(each, Ledger) else _load(each))
    return ledger.audit(expected)


def _load(path: str | os.PathLike[str]) -> Ledger:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return Ledger((start, stop) for start, stop in found[_KEY])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError("reads", os.fspath(path), f"a file of Ledger.save: {error}") from error


def _as_numbers(examples: Iterable[int]) -> _Numbers:
    if isinstance(examples, np.ndarray) and np.issubdtype(examples.dtype, np.integer):
        return examples.astype(np.int64).ravel()  # a copy: the caller may use it again
    return np.array([operator.index(example) for example in examples], np.int64)


def _runs(numbers: _Numbers) -> _Numbers:
    """Numbers as ranges; one that is there twice opens a new range."""
    numbers.sort()
    inner = np.flatnonzero(np.diff(numbers) == 1)
    return np.stack([np.delete(numbers, inner + 1), np.delete(numbers, inner) + 1], 1)


def _edges(ranges: _Numbers) -> tuple[_Numbers, _Numbers]:
    """Where reads begin and end, in order; how many begin there, less those that end."""
    # The sign of an edge is its last bit, for numbers alone are sorted far faster than pairs.
    sides = np.sort((2 * ranges + np.array([0, 1])).ravel())
    positions, signs = sides >> 1, 1 - 2 * (sides & 1)
    first = np.flatnonzero(np.diff(positions, prepend=-1))
    steps = np.add.reduceat(signs, first)
    return positions[first][steps != 0], steps[steps != 0]


def _joined(ranges: _Numbers) -> _Numbers:
    """Ranges in order, with those that touch made one."""
    starts, stops = ranges.T
    inner = np.flatnonzero(starts[1:] == stops[:-1])
    return np.stack([np.delete(starts, inner + 1), np.delete(stops, inner)], 1)


def _tuples(ranges: _Numbers) -> tuple[Range, ...]:
    return tuple((start, stop) for start, stop in ranges.tolist())


def _shown(ranges: Sequence[Range], most: int = 5) -> str:
    if not ranges:
        return "none"
    shown = ", ".join(f"[{start}, {stop})" for start, stop in ranges[:most])
    return shown + (f" and {len(ranges) - most} ranges more" if len(ranges) > most else "")
