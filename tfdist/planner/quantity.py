"""A number with the formula that it comes from.

The planner returns no bare numbers: a reader must be able to check each of them. So a quantity
knows its unit, its formula with the values put in, and the source of the formula. A sum knows its
terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A number, its unit, and where it comes from.

    Attributes:
        name: what it is, such as "attention".
        value: the number; an int where it is exact.
        unit: such as "parameters", "bytes", "FLOPs" or "seconds".
        formula: with the names of `values`, such as "2 h (q + k)"; "" for a sum of its parts.
        values: what the formula contains, by name.
        source: a paper or a measurement; "" if the formula is only counting.
        parts: the terms of a sum.
        interval: the least and the greatest value that are likely; None if the value is exact.
    """

    name: str
    value: float
    unit: str
    formula: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    parts: tuple[Quantity, ...] = ()
    interval: tuple[float, float] | None = None

    @classmethod
    def sum_of(cls, name: str, unit: str, parts: Sequence[Quantity], source: str = "") -> Quantity:
        """The sum of these parts; those that are 0 are left out of `parts`."""
        total = sum(part.value for part in parts)
        return cls(name, total, unit, source=source, parts=tuple(p for p in parts if p.value))

    def part(self, name: str) -> float:
        """The value of a part; 0 if there is none of this name."""
        return sum(part.value for part in self.parts if part.name == name)

    def as_json(self) -> dict[str, Any]:
        """`total`, and the values of all `parts` by name; `interval` if there is one."""
        found: dict[str, Any] = {"total": self.value, "parts": {}}
        for part in self.parts:
            found["parts"][part.name] = part.as_json() if part.parts else part.value
        if self.interval is not None:
            found["interval"] = list(self.interval)
        return found

    def repeated(self, times: float, letter: str) -> Quantity:
        """This quantity and each of its parts, so many times; `letter` names the number."""
        ends = self.interval and (times * self.interval[0], times * self.interval[1])
        return replace(
            self,
            value=times * self.value,
            formula=self.formula and f"{letter} ({self.formula})",
            values={letter: times, **self.values} if self.formula else self.values,
            parts=tuple(part.repeated(times, letter) for part in self.parts),
            interval=ends,
        )

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Quantity]]:
        """This quantity and all its parts, each with its depth."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)

    def __float__(self) -> float:
        return float(self.value)


def plain(number: Fraction | float) -> float:
    """The number as an int if it is whole, else as a float."""
    return int(number) if number == int(number) else float(number)
