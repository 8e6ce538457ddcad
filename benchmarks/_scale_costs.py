"""What messages cost, as a function of their size; made from measured points, and kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

_LEAST_SECS = 1e-9


@dataclass(frozen=True)
class Line:
    """`base`, and `slope` more for each of what is counted."""

    base: float = 0.0
    slope: float = 0.0

    def at(self, count: float) -> float:
        """The value there."""
        return self.base + self.slope * count

    def less(self, constant: float) -> Line:
        """So much lower, but nowhere below zero."""
        return Line(max(0.0, self.base - constant), self.slope)

    @classmethod
    def through(cls, points: Mapping[int, float]) -> Line:
        """The nearest line that neither falls nor begins below zero.

        Nearest by the ratio to each point, so that small sizes count as much as large ones.
        """
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
    """Of one message, in seconds.

    Attributes:
        ps: CPU time of the ps.
        trainer: CPU time of the trainer that sends it.
        delay: what it takes beyond both when nothing else goes on, such as the network.
    """

    ps: Line
    trainer: Line
    delay: Line


@dataclass(frozen=True)
class Costs:
    """Of all messages of a job.

    Attributes:
        run: an empty run by way of the trainer's own server, to each of so many ps. (What a ps
            has of it does not depend on their number.)
        pull: a variable of so many bytes, in a run.
        push: an update of so many bytes, in a run.
        lookup: so many rows, in a run.
        scatter: an update of so many rows, in a run.
        commit: in the run of an update, with so many trainers.
        claim: in a run of its own, with so many trainers.
        arrival: at a barrier that blocks in a queue, with so many parties.
        commit_section, claim_section, arrival_section: what of the ps's time is spent while others
            are kept out.
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
    def from_json(cls, data: Mapping[str, Any]) -> Costs:
        """The same costs; raises KeyError or TypeError if it is something else."""
        return cls(**{field.name: _read(data[field.name]) for field in fields(cls)})


def _read(data: Mapping[str, Any]) -> Cost | Line:
    if set(data) == {field.name for field in fields(Line)}:
        return Line(**data)
    return Cost(**{field.name: Line(**data[field.name]) for field in fields(Cost)})
