"""Sampling by frequency, with tables on the ps: Walker's alias method.

For n classes an alias table has n cells, each with a threshold and another class. A draw chooses a
cell, and takes its own class with the probability of the threshold, else the other one: two random
numbers, however many classes there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.errors import ConfigError, checked_number
from tfdist.nn.class_table import ClassTable, checked_table, sharded_lookup
from tfdist.nn.frequency import frequencies
from tfdist.nn.placement import Whole, check_outside_function, colocated, colocated_variable
from tfdist.nn.samplers import Part, Sampler, drawn_by_part, fold_in


@dataclass(frozen=True)
class _AliasShard:
    """What one ps has of the sampler: variables with an element for each class of its shard."""

    part: Part
    log_share: float
    log_prob: Any
    threshold: Any
    other: Any


class UnigramSampler(Sampler):
    """Classes by their frequency, to some power.

    Each ps holds the alias table of its own classes, next to their rows: 12 bytes a class. A draw
    chooses a shard by the frequency of all its classes, and the ps of that shard draws from them.
    So ids travel, and no table does.

    The tables are local variables: no checkpoint has them, so a restarted job may have other counts
    or another number of ps. `tfdist.train.session` and `MonitoredTrainingSession` initialize them;
    for a plain session run `tf.compat.v1.local_variables_initializer()` too. With another number of
    shards the same seed draws another sample.

    Args:
        table: the classes.
        counts: [num_classes], how often each class occurs.
        power: 1 draws a class as often as it occurs. With 0.75, as in word2vec (Mikolov et al.
            2013), rare classes are drawn more often.
        pseudo_count: is added to each count. Each class needs a probability above 0, for a label of
            probability 0 would have an infinite weight.
        name: of the variables.

    Raises:
        ConfigError: an argument is wrong; `counts` must have a number for each class.
    """

    def __init__(
        self,
        table: ClassTable,
        counts: Any,
        *,
        power: float = 1.0,
        pseudo_count: float = 1.0,
        name: str = "unigram",
    ) -> None:
        self.num_classes = checked_table(table).num_classes
        check_outside_function("UnigramSampler")
        prob = frequencies(counts, pseudo_count)
        if len(prob) != self.num_classes:
            rule = f"must have {self.num_classes} numbers, one for each class"
            raise ConfigError("counts", f"{len(prob)} numbers", rule)
        number = checked_number("power", power, math.isfinite, "must be a finite number")
        with np.errstate(over="ignore", invalid="ignore"):
            prob **= number
            prob /= prob.sum()
        if not (prob > 0).all():
            rule = "must leave the probability of each class above 0"
            raise ConfigError("power", power, rule)
        self._shards: list[_AliasShard] = []
        for index, shard in enumerate(table.shards):
            own = prob[shard.start : shard.stop]
            values = {"log_prob": np.log(own).astype(np.float32), **alias_table(own)}
            bounds = shard.start, shard.stop
            variables = {}
            for part, value in values.items():
                whole = Whole(f"{name}/{part}", [self.num_classes], index, bounds)
                variables[part] = colocated_variable(
                    shard.weights, whole.part, value, whole, trainable=False, saved=False
                )
            log_share = math.log(own.sum())
            self._shards.append(_AliasShard(bounds, log_share, **variables))
        self._by_part = {shard.part: shard for shard in self._shards}

    def draw_from(self, part: Part, count: Any, seed: Any) -> Any:  # noqa: D102
        if (shard := self._shard(part)) is not None:
            return _drawn(shard, count, seed)
        log_shares = [[shard.log_share for shard in self._shards]]
        choices = tf.random.stateless_categorical(log_shares, count, seed, tf.int32)[0]
        draws = [
            partial(_drawn, shard, seed=fold_in(seed, index))
            for index, shard in enumerate(self._shards)
        ]
        return drawn_by_part(choices, count, draws)

    def log_prob(self, ids: Any, part: Part | None = None) -> Any:  # noqa: D102
        if part is not None and (shard := self._by_part.get(part)) is not None:
            return tf.gather(shard.log_prob, ids - part[0])
        return sharded_lookup([shard.log_prob for shard in self._shards], ids)

    def log_share(self, part: Part) -> float:  # noqa: D102
        shard = self._shard(part)
        return 0.0 if shard is None else shard.log_share

    def _shard(self, part: Part) -> _AliasShard | None:
        """The shard that is this part, or None for all of them.

        Raises:
            ConfigError: it is neither.
        """
        shard = self._by_part.get(part)
        if shard is None and part != (0, self.num_classes):
            rule = "must be made for a table with the same shards"
            raise ConfigError("sampler", f"a UnigramSampler of {len(self._shards)} shards", rule)
        return shard


def _drawn(shard: _AliasShard, count: Any, seed: Any) -> Any:
    start, stop = shard.part
    with colocated(shard.other.handle):
        cells = tf.random.stateless_uniform([count], seed, 0, stop - start, tf.int32)
        heights = tf.random.stateless_uniform([count], fold_in(seed, -1))
        is_own = heights < tf.gather(shard.threshold, cells)
        ids = tf.cast(tf.where(is_own, cells, tf.gather(shard.other, cells)), tf.int64)
    return ids + start


def alias_table(prob: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """An alias table of a distribution, in time that grows with its length.

    Classes with less than the mean probability leave the rest of their cells to classes with more:
    the first one with more fills cells until it has no more than the mean itself, and then the next
    one fills its cell too. Which fills which follows from the sums up to each class (Hübschle-
    Schneider and Sanders 2022, "Parallel Weighted Random Sampling"), so no loop runs over classes.

    Args:
        prob: [n], with a sum above 0.

    Returns:
        "threshold", float32 [n], and "other", int32 [n].
    """
    heights = prob * (len(prob) / prob.sum())
    light, heavy = np.flatnonzero(heights < 1), np.flatnonzero(heights >= 1)
    threshold, other = np.ones(len(prob)), np.arange(len(prob))
    if len(light) and len(heavy):
        needed = np.cumsum(1 - heights[light])
        offered = np.cumsum(heights[heavy] - 1)
        before = np.concatenate([[0.0], needed[:-1]])
        fills = np.minimum(_num_below(offered, before), len(heavy) - 1)
        threshold[light], other[light] = heights[light], heavy[fills]
        # The light class whose cell takes more than the heavy class has left.
        last = _num_up_to(needed, offered[:-1])
        exhausted = np.flatnonzero(last < len(needed))
        left = 1 + offered[exhausted] - needed[last[exhausted]]
        threshold[heavy[exhausted]] = np.clip(left, 0, 1)
        other[heavy[exhausted]] = heavy[exhausted + 1]
    return {"threshold": threshold.astype(np.float32), "other": other.astype(np.int32)}


def _num_below(values: np.ndarray[Any, Any], bounds: np.ndarray[Any, Any]) -> Any:
    """For each bound, the number of values below it; both are sorted.

    `np.searchsorted` does the same, and takes twice as long for ten million.
    """
    order = np.argsort(np.concatenate([bounds, values]), kind="stable")  # merges two sorted halves
    return np.flatnonzero(order < len(bounds)) - np.arange(len(bounds))


def _num_up_to(values: np.ndarray[Any, Any], bounds: np.ndarray[Any, Any]) -> Any:
    """For each bound, the number of values that are not above it; both are sorted."""
    order = np.argsort(np.concatenate([values, bounds]), kind="stable")
    return np.flatnonzero(order >= len(values)) - np.arange(len(bounds))
