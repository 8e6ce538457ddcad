"""Which splits a job has, and in which order an epoch hands them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tfdist.data.ledger import Range
from tfdist.errors import ConfigError

_WORD = 2**64


@dataclass(frozen=True)
class Plan:
    """What does not change while a job runs.

    Attributes:
        splits: all records, each once.
        seed: of the order of the splits; each epoch has an order of its own.
        lease_us: how long a lease lasts that is not renewed.
        max_retries: a split that is lost once more than that without a commit in between is given
            up.
    """

    splits: tuple[Range, ...]
    seed: int
    lease_us: int
    max_retries: int

    def __post_init__(self) -> None:
        if self.lease_us <= 0:
            raise ConfigError("lease_us", self.lease_us, "more than 0")
        if self.max_retries < 0:
            raise ConfigError("max_retries", self.max_retries, "at least 0")
        if not self.splits:
            raise ConfigError("splits", (), "at least one; have the files no records?")
        check_splits(self.splits)


def check_splits(splits: Sequence[Range]) -> None:
    """Raises ConfigError unless they are ranges, of which no two have a record in common."""
    for start, stop in splits:
        if not 0 <= start < stop:
            raise ConfigError("splits", (start, stop), "a range needs 0 <= start < stop")
    for one, other in pairwise(sorted(splits)):
        if other[0] < one[1]:
            raise ConfigError("splits", other, f"has records of another one, {one}")


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 .. size - 1 in the order of an epoch, the same everywhere and for ever.

    They are sorted by the first `size` outputs of a generator SplitMix64 (Steele, Lea and Flood,
    2014), no two of which are equal. Its state at the beginning is the first output of one with
    the state x, where x is `epoch` more than the first output of one with the state `seed`.
    """
    state = _mixed(_mixed(seed, 1) + epoch, 1)
    return sorted(range(size), key=lambda index: _mixed(state, index + 1))


def _mixed(state: int, number: int) -> int:
    """That output of a generator SplitMix64; the first is number 1."""
    z = (state + number * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _WORD
    return z ^ (z >> 31)
