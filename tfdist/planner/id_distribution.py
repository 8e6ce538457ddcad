"""How often the ids of an embedding table occur, and what follows for its rows.

Two things depend on it. A batch contains a popular id many times, and a worker that deduplicates
asks for its row once. And the ps that has the popular ids has the most to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfdist.errors import ConfigError, checked_choice, checked_integer, checked_number
from tfdist.planner.quantity import Quantity

PLACEMENTS = ("contiguous", "modulo", "hashed")
MOST_ROWS = 10**12
_HEAD = 2**16  # ids of a Zipf distribution that are counted one by one
_GROWTH = 1 + 1 / 256  # of the blocks after them


@dataclass(frozen=True, eq=False)
class IdDistribution:
    """The probability of each id, in blocks of ids that have the same.

    Make one with `from_counts` or `zipf`.

    Attributes:
        rows: number of ids; they are 0 to `rows - 1`.
        edges: first id of each block, then `rows`; an array.
        probabilities: of one id of each block; an array.
        source: where it comes from.
    """

    rows: int
    edges: Any
    probabilities: Any
    source: str

    @classmethod
    def from_counts(cls, counts: Any) -> IdDistribution:
        """The distribution of a histogram: how often each id occurred in a sample of the data.

        Args:
            counts: one number for each id, from id 0 on.

        Raises:
            ConfigError: they are not numbers of at least 0, or all are 0.
        """
        import numpy as np

        rule = "must be one number of at least 0 for each id, not all 0"
        try:
            found = np.asarray(counts, np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError("counts", counts, rule) from error
        total = found.sum()
        if found.ndim != 1 or not (found >= 0).all() or not 0 < total < np.inf:
            raise ConfigError("counts", counts, rule)
        source = f"a histogram of {total:g} ids"
        return cls(len(found), np.arange(len(found) + 1), found / total, source)

    @classmethod
    def zipf(cls, rows: int, exponent: float = 1.0) -> IdDistribution:
        """Zipf's law: the probability of id i is proportional to 1 / (i + 1)^exponent.

        Id 0 is the most frequent, as in a vocabulary that is sorted by frequency. An exponent of 0
        makes all ids alike.

        The first 65,536 ids are exact. Later ones are in blocks whose ids differ by less than 1 in
        256; a block has the mean of its ids.

        Raises:
            ConfigError: a number is out of range.
        """
        import numpy as np

        rows = checked_integer("rows", rows, 1, MOST_ROWS)
        rule = "must be a number from 0 to 10"
        exponent = checked_number("exponent", exponent, lambda n: 0 <= n <= 10, rule)
        count = min(rows, _HEAD)
        blocks = [count]
        while blocks[-1] < rows:
            blocks.append(min(rows, int(blocks[-1] * _GROWTH)))
        edges = np.concatenate([np.arange(count), blocks])
        ranks = np.arange(1.0, count + 1)
        low, high = edges[count:-1] + 0.5, edges[count + 1 :] + 0.5
        # The sum over a block is the integral from half an id before it to half an id after.
        power = 1 - exponent
        ratio = np.log(high / low)
        tail = low**power * np.expm1(power * ratio) / power if power else ratio
        weights = np.concatenate([ranks**-exponent, tail / (high - low)])
        total = weights @ np.diff(edges)
        return cls(rows, edges, weights / total, f"Zipf's law, exponent {exponent:g}")

    def expected_unique(self, draws: float) -> Quantity:
        """Mean number of different ids among this many independent draws.

        Raises:
            ConfigError: the number is negative or not finite.
        """
        draws = _checked_draws(draws)
        value = float(self._rows_of_blocks(draws, deduplicated=True).sum())
        formula, values = "sum of 1 - (1 - p_i)^n over all ids i", {"n": draws, "ids": self.rows}
        return Quantity("unique ids", value, "ids", formula, values, self.source)

    def rows_by_ps(
        self, draws: float, num_ps: int, placement: str, *, deduplicated: bool
    ) -> list[float]:
        """Mean number of rows that each ps sends for this many draws.

        Args:
            draws: ids that a worker looks up.
            num_ps: number of ps.
            placement: "contiguous" cuts the table into ranges, as TensorFlow's strategy "div" and
                its ShardedVariable do; "modulo" puts id i on ps i mod num_ps; "hashed" puts it
                where a hash of it says.
            deduplicated: whether a worker asks once for an id that it has several times.

        Raises:
            ConfigError: a value is out of range.
        """
        import numpy as np

        draws = _checked_draws(draws)
        checked_integer("num_ps", num_ps, 1, 10**6)
        checked_choice("placement", placement, PLACEMENTS)
        rows = self._rows_of_blocks(draws, deduplicated)
        if placement == "contiguous":
            size, longer = divmod(self.rows, num_ps)
            bounds = [size * ps + min(ps, longer) for ps in range(num_ps + 1)]
            up_to = np.interp(bounds, self.edges, np.concatenate([[0.0], np.cumsum(rows)]))
            return [float(each) for each in np.diff(up_to)]
        # A block of many ids spreads evenly.
        single = np.diff(self.edges) == 1
        ids = self.edges[:-1][single]
        ps = ids % num_ps if placement == "modulo" else _hashed(ids) % np.uint64(num_ps)
        loads = np.bincount(ps.astype(np.int64), rows[single], num_ps)
        return [float(each) for each in loads + rows[~single].sum() / num_ps]

    def _rows_of_blocks(self, draws: float, deduplicated: bool) -> Any:
        import numpy as np

        each = draws * self.probabilities
        if deduplicated and draws > 1:
            with np.errstate(divide="ignore"):  # of an id with probability 1
                each = -np.expm1(draws * np.log1p(-self.probabilities))
        return each * np.diff(self.edges)


def _hashed(ids: Any) -> Any:
    """A hash that stands for any good one: the mixing function of SplitMix64 (Steele et al. 2014).

    An identity such as Python's hash of an int would make "hashed" the same as "modulo".
    """
    import numpy as np

    mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _checked_draws(draws: Any) -> float:
    rule = "must be a number of ids, at least 0"
    return checked_number("draws", draws, lambda n: 0 <= n < 1e18, rule)
