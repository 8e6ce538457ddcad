"""How often something happens, by how often it did: with the exact interval of Clopper and Pearson.

C. J. Clopper and E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of
the binomial, Biometrika 26 (1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = 60  # of a bisection: more than a float has digits


@dataclass(frozen=True)
class Rate:
    """`hits` of `runs`, each run independent of the others."""

    hits: int
    runs: int

    @property
    def value(self) -> float:
        """The share that was seen."""
        return self.hits / self.runs

    def bounds(self, confidence: float = 0.95) -> tuple[float, float]:
        """Between which the true rate lies, with this confidence.

        Where all runs or none were hits, the other bound alone has to hold, with all of the
        confidence: 0 of 59 means 5 % at most.
        """
        one_sided = self.hits in (0, self.runs)
        tail = (1 - confidence) / (1 if one_sided else 2)
        low = 0.0 if self.hits == 0 else self._solve(self.hits - 1, 1 - tail)
        high = 1.0 if self.hits == self.runs else self._solve(self.hits, tail)
        return low, high

    def _solve(self, hits: int, chance: float) -> float:
        """The rate at which `hits` or fewer come with this chance; the more, the less likely."""
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if _at_most(hits, self.runs, middle) > chance:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def __str__(self) -> str:
        """With the interval, in percent."""
        low, high = self.bounds()
        if self.hits == 0:
            return f"0 of {self.runs}: at most {high:.1%}"
        return f"{self.hits} of {self.runs}: {self.value:.0%} ({low:.0%} to {high:.0%})"


def _at_most(hits: int, runs: int, rate: float) -> float:
    return sum(math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(hits + 1))
