"""The splits of a job, and the order in which an epoch hands them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tfdist.data.ledger import MOST, Range
from tfdist.errors import ConfigError, checked_integer

_WORD = 2**64


@dataclass(frozen=True)
class Plan:
    """What does not change while a job runs.

    Attributes:
        splits: half-open ranges that contain each record at most once.
        seed: determines the order of the splits, which differs from epoch to epoch.
        lease_us: microseconds after which a lease expires unless it is renewed.
        max_retries: a split that is lost more often without a commit in between is given up.
    """

    splits: Sequence[Range]
    seed: int
    lease_us: int
    max_retries: int

    def __post_init__(self) -> None:
        if self.lease_us <= 0:
            raise ConfigError("lease_us", self.lease_us, "must be more than 0")
        if self.max_retries < 0:
            raise ConfigError("max_retries", self.max_retries, "must be at least 0")
        object.__setattr__(self, "splits", checked_splits(self.splits))
        if not self.splits:
            raise ConfigError("splits", (), "must be at least one; do the files have no records?")


def checked_splits(splits: Any) -> tuple[Range, ...]:
    """The splits as ranges of Python's integers.

    Raises:
        ConfigError: they are no ranges, or two of them overlap.
    """
    try:
        pairs = [(start, stop) for start, stop in splits]
    except (TypeError, ValueError):
        raise ConfigError("splits", splits, "must be pairs (start, stop)") from None
    ranges = tuple(
        (checked_integer("splits", start), checked_integer("splits", stop)) for start, stop in pairs
    )
    for start, stop in ranges:
        if not 0 <= start < stop <= MOST:
            raise ConfigError("splits", (start, stop), "must satisfy 0 <= start < stop <= 2**62")
    for one, other in pairwise(sorted(ranges)):
        if other[0] < one[1]:
            raise ConfigError("splits", other, f"overlaps another split, {one}")
    return ranges


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 to `size` - 1 in the order of an epoch, which is the same in every version.

    The numbers are sorted by the first `size` outputs, all different, of a SplitMix64 generator
    (Steele, Lea and Flood, 2014). Its initial state is the first output for the state x, where x is
    `epoch` plus the first output for the state `seed`.
    """
    state = _mixed(_mixed(seed, 1) + epoch, 1)
    return sorted(range(size), key=lambda index: _mixed(state, index + 1))


def _mixed(state: int, number: int) -> int:
    """Output `number`, counted from 1, of a SplitMix64 generator."""
    z = (state + number * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return z ^ (z >> 31)
