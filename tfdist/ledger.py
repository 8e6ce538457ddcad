"""Which examples were visited in an epoch: none may be missing, none may come twice.

Visits are kept as half-open ranges of example numbers, since what a trainer visits is contiguous,
or becomes so: a million visits cost one range in the end. The rules are pure;
`tfdist.Epoch` carries the ledgers of all trainers to the chief.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tfdist.errors import ConfigError, EpochError

Range = tuple[int, int]

_COMPACT_AT = 4096  # ranges
_KEY = "tfdist_visits"


@dataclass(frozen=True)
class Audit:
    """What a ledger says about an epoch of `expected` examples.

    Attributes:
        expected: how many examples the epoch has, numbered from 0.
        visited: how many of them were visited, once or more often.
        missing: ranges of examples that were not visited.
        duplicates: ranges of examples that were visited more than once.
    """

    expected: int
    visited: int
    missing: tuple[Range, ...]
    duplicates: tuple[Range, ...]

    @property
    def complete(self) -> bool:
        """Whether every example was visited exactly once."""
        return not self.missing and not self.duplicates

    @property
    def visited_once(self) -> int:
        """How many examples were visited exactly once."""
        return self.visited - sum(stop - start for start, stop in self.duplicates)

    def check(self) -> None:
        """Raises EpochError unless every example was visited exactly once."""
        if not self.complete:
            raise EpochError(
                f"visited once: {self.visited_once} of {self.expected} examples; "
                f"missing {_shown(self.missing)}; duplicates {_shown(self.duplicates)}",
                missing=self.missing,
                duplicates=self.duplicates,
            )


class Ledger:
    """Collects visited examples; two visits of one example are remembered as such.

    Args:
        visits: half-open ranges to begin with.
    """

    def __init__(self, visits: Iterable[Range] = ()) -> None:
        self._visits: list[Range] = []
        self._compact_at = _COMPACT_AT
        for start, stop in visits:
            if not 0 <= start < stop:
                raise ConfigError("visits", (start, stop), "a range needs 0 <= start < stop")
            self._visits.append((start, stop))

    def add(self, examples: Iterable[int]) -> None:
        """Records one visit of each of `examples` (whole numbers from 0, in any order)."""
        self._visits.extend(_runs(sorted(operator.index(example) for example in examples)))
        if len(self._visits) > self._compact_at:
            self._visits = list(self.ranges())
            # Twice as many, so that shuffled visits, which join late, are not sorted all the time.
            self._compact_at = _COMPACT_AT + 2 * len(self._visits)

    def merge(self, other: Ledger) -> None:
        """Records everything that `other` recorded."""
        self._visits.extend(other._visits)

    def ranges(self) -> tuple[Range, ...]:
        """All visits as few ranges; ranges overlap where an example was visited again."""
        nested: list[Range] = []
        starts: list[int] = []
        for position, step in _edges(self._visits):
            if step > 0:
                starts.append(position)
            else:
                nested.append((starts.pop(), position))
        return tuple(sorted(nested))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the visits as a JSON file, whole or not at all; `audit` reads it.

        Each trainer writes a file of its own.
        """
        unfinished = f"{os.fspath(path)}.unfinished"
        Path(unfinished).write_text(json.dumps({_KEY: self.ranges()}), encoding="utf-8")
        os.replace(unfinished, path)

    def audit(self, expected: int) -> Audit:
        """Compares the visits with one visit of each of the examples 0 .. expected - 1.

        Raises:
            ConfigError: an example outside of that range was visited.
        """
        if expected < 0:
            raise ConfigError("expected", expected, "at least 0")
        last = max((stop for _, stop in self._visits), default=0) - 1
        if last >= expected:
            raise ConfigError("expected", expected, f"examples up to {last} were visited")
        missing: list[Range] = []
        duplicates: list[Range] = []
        visited, depth, position = 0, 0, 0
        for edge, step in chain(_edges(self._visits), [(expected, 0)]):
            if edge > position:
                if depth == 0:
                    _append(missing, (position, edge))
                else:
                    visited += edge - position
                if depth > 1:
                    _append(duplicates, (position, edge))
                position = edge
            depth += step
        return Audit(expected, visited, tuple(missing), tuple(duplicates))


def audit(visits: Iterable[Ledger | str | os.PathLike[str]], expected: int) -> Audit:
    """What all trainers together have visited, against one visit of each of `expected` examples.

    Args:
        visits: ledgers, or the files that `Ledger.save` wrote.
        expected: how many examples there are, numbered from 0.

    Raises:
        ConfigError: a file is none of a ledger, or an example has a number that is too large.
    """
    ledger = Ledger()
    for each in visits:
        ledger.merge(each if isinstance(each, Ledger) else _load(each))
    return ledger.audit(expected)


def _load(path: str | os.PathLike[str]) -> Ledger:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return Ledger((start, stop) for start, stop in found[_KEY])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError("visits", os.fspath(path), f"a file of Ledger.save: {error}") from error


def _runs(examples: Sequence[int]) -> Iterable[Range]:
    """Sorted example numbers as ranges; a number that stands there twice opens a new range."""
    start: int | None = None
    stop = 0
    for example in examples:
        if example < 0:
            raise ConfigError("examples", example, "an example number is at least 0")
        if start is not None and example == stop:
            stop += 1
            continue
        if start is not None:
            yield start, stop
        start, stop = example, example + 1
    if start is not None:
        yield start, stop


def _edges(visits: Iterable[Range]) -> list[tuple[int, int]]:
    """(position, +1 or -1) for each begin and end, in order; where they meet they cancel out."""
    steps: dict[int, int] = {}
    for start, stop in visits:
        steps[start] = steps.get(start, 0) + 1
        steps[stop] = steps.get(stop, 0) - 1
    edges: list[tuple[int, int]] = []
    for position in sorted(steps):
        step = steps[position]
        edges.extend([(position, 1 if step > 0 else -1)] * abs(step))
    return edges


def _append(ranges: list[Range], new: Range) -> None:
    if ranges and ranges[-1][1] == new[0]:
        ranges[-1] = (ranges[-1][0], new[1])
    else:
        ranges.append(new)


def _shown(ranges: Sequence[Range], most: int = 5) -> str:
    if not ranges:
        return "none"
    shown = ", ".join(f"[{start}, {stop})" for start, stop in ranges[:most])
    return shown + (f" and {len(ranges) - most} ranges more" if len(ranges) > most else "")
