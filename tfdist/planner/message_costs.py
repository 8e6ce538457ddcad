"""The costs of messages as functions of their size, made from measurements, kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_LEAST_SECS = 1e-9


@dataclass(frozen=True)
class Line:
    """A linear cost: `base`, and `slope` for each unit."""

    base: float = 0.0
    slope: float = 0.0

    def at(self, count: float) -> float:
        """The value at `count` units."""
        return self.base + self.slope * count

    def less(self, constant: float) -> Line:
        """The line lowered by a constant; its base stays at least zero."""
        return Line(max(0.0, self.base - constant), self.slope)

    @classmethod
    def through(cls, points: Mapping[int, float]) -> Line:
        """The best line that does not fall and does not start below zero.

        The fit minimizes relative errors, so that small sizes count as much as large ones.
        """
        import numpy as np

        values = np.maximum(list(points.values()), _LEAST_SECS)
        columns = np.stack([np.ones(len(points)), list(points)], 1) / values[:, None]

        def nearest(*kept: int) -> list[float]:
            found = np.linalg.lstsq(columns[:, kept], np.ones(len(points)), rcond=None)[0]
            return [float(each) for each in found]

        if len(points) == 1:
            return cls(*nearest(0))
        base, slope = nearest(0, 1)
        if slope < 0:
            return cls(*nearest(0))
        return cls(base, slope) if base >= 0 else cls(0.0, *nearest(1))


@dataclass(frozen=True)
class Cost:
    """The cost of one message, in seconds.

    Attributes:
        ps: CPU time of the ps.
        trainer: CPU time of the trainer that sends it.
        delay: its latency on idle machines beyond these two, such as the network.
    """

    ps: Line
    trainer: Line
    delay: Line


@dataclass(frozen=True)
class MessageCosts:
    """The costs of all messages of a job; the unit of each line is in parentheses.

    Attributes:
        run: an empty run through the trainer's own server (ps). The cost of one ps does not depend
            on their number.
        pull: reading a variable, in a run (bytes).
        push: updating a variable, in a run (bytes).
        lookup: reading rows, in a run (rows).
        scatter: updating rows, in a run (rows).
        commit: a commit in the run of an update (trainers).
        claim: a claim in its own run (trainers).
        arrival: an arrival at a barrier of kind "queue" (parties).
        commit_section, claim_section, arrival_section: the part of the ps's time during which the
            message holds the lock (trainers, trainers, parties).
    """

    run: Cost
    pull: Cost
    push: Cost
    lookup: Cost
    scatter: Cost
    commit: Cost
    claim: Cost
    arrival: Cost
    commit_section: Line
    claim_section: Line
    arrival_section: Line

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MessageCosts:
        """The costs from `to_json`; raises KeyError or TypeError for other data."""
        read: dict[str, Any] = {field.name: _read(data[field.name]) for field in fields(cls)}
        return cls(**read)


def _read(data: Mapping[str, Any]) -> Cost | Line:
    if set(data) == {field.name for field in fields(Line)}:
        return Line(**data)
    return Cost(**{field.name: Line(**data[field.name]) for field in fields(Cost)})
