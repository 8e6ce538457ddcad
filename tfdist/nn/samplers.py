"""Classes that stand for all others in a loss: which are drawn, and how likely each was.

A sampler is a distribution over the classes. `Sampler.sample` draws from it, and says for each
class how often a sample contains it on average: a sampled loss divides by that. With replacement a
class of probability q occurs n q times among n draws. Without replacement the sampler draws until
there are enough different classes; if that took n draws, a class was among them with probability
1 - (1 - q)^n.

Draws depend on a seed alone, so that a step can be replayed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from tfdist.errors import (
    ConfigError,
    checked_flag,
    checked_integer,
    checked_number,
    checked_several,
)
from tfdist.nn.batch import checked_ids, checked_tensor

# Each round draws as often as all rounds before it, so this is some 4,000 times the sample.
_MOST_ROUNDS = 12
_MOST_BELOW_1 = 1 - 2**-24  # of the numbers in float32; with 1 a logarithm would be infinite


class Candidates(NamedTuple):
    """A sample, and what a loss has to know of it; give it to a loss again to replay a step.

    Attributes:
        ids: int64 [num_sampled], the classes.
        log_q: float32 [num_sampled], the logarithm of how often a sample contains each of them on
            average.
        labels_log_q: float32 [batch], the same of the labels.
    """

    ids: Any
    log_q: Any
    labels_log_q: Any


# The classes from the first number to before the second.
Part = tuple[int, int]


class Sampler(ABC):
    """A distribution over classes.

    Attributes:
        num_classes: number of classes.
    """

    num_classes: int

    @abstractmethod
    def draw_from(self, part: Part, count: Any, seed: Any) -> Any:
        """Draws `count` independent classes of this part.

        Args:
            part: the first class, and the class after the last one: all classes, or those of one
                shard.
            count: a number or a scalar tensor.
            seed: [2] integers.

        Returns:
            int64 [count], numbered as in the whole table.
        """

    @abstractmethod
    def log_prob(self, ids: Any, part: Part | None = None) -> Any:
        """The logarithm of the probability of each of these classes in a draw from all.

        Args:
            ids: int64 [n].
            part: a part that contains all of them, such as a shard whose ps asks.

        Returns:
            float32 [n].
        """

    @abstractmethod
    def log_share(self, part: Part) -> float:
        """The logarithm of the probability that a draw from all is in this part."""

    def draw(self, count: Any, seed: Any) -> Any:
        """Draws `count` independent classes; `draw_from` describes the arguments."""
        return self.draw_from((0, self.num_classes), count, seed)

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
    def sample(
        self, num_sampled: int, labels: Any, *, unique: bool = True, seed: Any = None
    ) -> Candidates:
        """Draws one sample, which all examples of a batch share.

        Args:
            num_sampled: size of the sample.
            labels: [batch] integers below num_classes.
            unique: whether its classes differ.
            seed: a number or [2] integers. The same seed draws the same sample; a loop passes its
                step. None draws another one in each run.

        Raises:
            ConfigError: an argument is wrong, or there are not so many different classes.
            tf.errors.InvalidArgumentError: in a run, a label is out of range, or so many draws had
                too few different classes that the sampler gave up.
        """
        most = self.num_classes if checked_flag("unique", unique) else None
        num_sampled = checked_integer("num_sampled", num_sampled, 1, most)
        labels = checked_ids("labels", labels, self.num_classes)
        seed = checked_seed(seed)
        ids, tries = self.draw(num_sampled, seed), num_sampled
        if unique:
            ids, tries = self._different(ids, num_sampled, seed)
        ids = tf.ensure_shape(ids, [num_sampled])
        log_prob = self.log_prob(tf.concat([ids, labels], 0))
        tries = tf.cast(tries, tf.float32)
        if unique:
            prob = tf.minimum(tf.exp(log_prob), _MOST_BELOW_1)
            log_q = tf.math.log(-tf.math.expm1(tries * tf.math.log1p(-prob)))
        else:
            log_q = log_prob + tf.math.log(tries)
        return Candidates(ids, log_q[:num_sampled], log_q[num_sampled:])

    def _different(self, draws: Any, wanted: int, seed: Any) -> tuple[Any, Any]:
        """The first `wanted` different classes, and after how many draws they were there."""

        # The draws are counted: TensorFlow may take `tf.size(draws)` in a loop for their number
        # before the first round (2.21).
        def draw_more(draws: Any, count: Any, round_number: Any) -> list[Any]:
            more = self.draw(count, fold_in(seed, round_number))
            return [tf.concat([draws, more], 0), 2 * count, round_number + 1]

        def lacks(draws: Any, *_: Any) -> Any:
            return tf.size(tf.unique(draws).y) < wanted

        draws, _, _ = tf.while_loop(
            lacks,
            draw_more,
            [draws, tf.constant(wanted), tf.constant(1)],
            shape_invariants=[tf.TensorShape([None]), tf.TensorShape([]), tf.TensorShape([])],
            maximum_iterations=_MOST_ROUNDS,
        )
        found, places = tf.unique(draws, tf.int64)
        what = f"the sampler did not draw {wanted} different classes; set unique=False. Draws and"
        enough = tf.debugging.Assert(
            tf.size(found) >= wanted, [f"{what} different classes:", tf.size(draws), tf.size(found)]
        )
        with tf.control_dependencies([] if enough is None else [enough]):
            ids = found[:wanted]
        return ids, tf.argmax(tf.equal(places, wanted - 1)) + 1


class UniformSampler(Sampler):
    """All classes are equally likely."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = checked_integer("num_classes", num_classes, 1)

    def draw_from(self, part: Part, count: Any, seed: Any) -> Any:  # noqa: D102
        return tf.random.stateless_uniform([count], seed, *part, tf.int64)

    def log_prob(self, ids: Any, part: Part | None = None) -> Any:  # noqa: D102
        return tf.fill(tf.shape(ids), tf.constant(-math.log(self.num_classes)))

    def log_share(self, part: Part) -> float:  # noqa: D102
        return math.log((part[1] - part[0]) / self.num_classes)


class LogUniformSampler(Sampler):
    """For classes in the order of their frequency: class k has log((k + 2) / (k + 1)) / log(n + 1).

    That is about Zipf's law, which the words of a text follow. It is the distribution of
    `tf.random.log_uniform_candidate_sampler`.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = checked_integer("num_classes", num_classes, 1)

    def draw_from(self, part: Part, count: Any, seed: Any) -> Any:  # noqa: D102
        start, stop = part
        # float32 has fewer numbers than there may be classes.
        logs = tf.random.stateless_uniform(
            [count], seed, math.log(start + 1), math.log(stop + 1), tf.float64
        )
        return tf.clip_by_value(tf.cast(tf.exp(logs), tf.int64) - 1, start, stop - 1)

    def log_prob(self, ids: Any, part: Part | None = None) -> Any:  # noqa: D102
        ids = tf.cast(ids, tf.float64)
        prob = tf.math.log1p(1 / (ids + 1)) / math.log(self.num_classes + 1)
        return tf.cast(tf.math.log(prob), tf.float32)

    def log_share(self, part: Part) -> float:  # noqa: D102
        share = math.log((part[1] + 1) / (part[0] + 1)) / math.log(self.num_classes + 1)
        return math.log(share)


class MixedSampler(Sampler):
    """Each draw is from one of several samplers, by chance: from sampler i with probability w_i.

    The probability of a class is the weighted sum of theirs. A part of uniform draws, for example,
    shows rare classes to a model whose other negatives are popular ones: Yang et al. 2020, "Mixed
    Negative Sampling for Learning Two-tower Neural Networks in Recommendations".

    Args:
        samplers: at least one, for equally many classes.
        weights: one for each, at least 0; they are divided by their sum.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        rule = "must be samplers, at least one, of the same number of classes"
        samplers = list(checked_several("samplers", samplers, rule))
        if not samplers or not all(isinstance(sampler, Sampler) for sampler in samplers):
            raise ConfigError("samplers", samplers, rule)
        classes = [sampler.num_classes for sampler in samplers]
        if len(set(classes)) != 1:
            raise ConfigError("samplers", classes, rule)
        rule = f"must be {len(samplers)} numbers of at least 0 with a sum above 0"
        weights = [
            checked_number("weights", weight, lambda number: 0 <= number < math.inf, rule)
            for weight in checked_several("weights", weights, rule)
        ]
        if len(weights) != len(samplers) or not 0 < sum(weights) < math.inf:
            raise ConfigError("weights", weights, rule)
        self._parts = [
            (sampler, math.log(weight / sum(weights)))
            for sampler, weight in zip(samplers, weights, strict=True)
            if weight > 0
        ]
        self.num_classes = samplers[0].num_classes

    def draw_from(self, part: Part, count: Any, seed: Any) -> Any:  # noqa: D102
        log_shares = [[weight + s.log_share(part) for s, weight in self._parts]]
        choices = tf.random.stateless_categorical(log_shares, count, seed, tf.int32)[0]
        draws = [
            partial(sampler.draw_from, part, seed=fold_in(seed, index))
            for index, (sampler, _) in enumerate(self._parts)
        ]
        return drawn_by_part(choices, count, draws)

    def log_prob(self, ids: Any, part: Part | None = None) -> Any:  # noqa: D102
        return tf.reduce_logsumexp([s.log_prob(ids, part) + w for s, w in self._parts], 0)

    def log_share(self, part: Part) -> float:  # noqa: D102
        return math.log(sum(math.exp(s.log_share(part) + weight) for s, weight in self._parts))


def learned_unigram_sample(
    num_sampled: int, labels: Any, num_classes: int, *, unique: bool = True, seed: int | None = None
) -> Candidates:
    """Draws classes by how often they were labels up to now, in this trainer.

    This is `tf.random.learned_unigram_candidate_sampler`: each run adds its labels to the counts,
    which begin at 1. TensorFlow keeps the counts with the operation, in the trainer's memory: they
    are not saved, other trainers have their own, and a function that is traced again begins anew.
    Eagerly, all calls with the same arguments share them. A seed replays the whole sequence of
    runs, not one of them; to replay a step, keep its `Candidates`.

    Args:
        num_sampled: size of the sample.
        labels: [batch] integers below num_classes.
        num_classes: number of classes; the counts take 8 bytes for each.
        unique: whether the classes of a sample differ.
        seed: a number, or None for a different sequence in each session.

    Raises:
        ConfigError: an argument is wrong, or there are not so many different classes.
    """
    num_classes = checked_integer("num_classes", num_classes, 1)
    most = num_classes if checked_flag("unique", unique) else None
    num_sampled = checked_integer("num_sampled", num_sampled, 1, most)
    labels = checked_ids("labels", labels, num_classes)
    seed = None if seed is None else checked_integer("seed", seed)
    ids, label_counts, counts = tf.random.learned_unigram_candidate_sampler(
        labels[:, None], 1, num_sampled, unique, num_classes, seed
    )
    return Candidates(ids, tf.math.log(counts), tf.math.log(label_counts[:, 0]))


def drawn_by_part(choices: Any, count: Any, draws: Sequence[Callable[[Any], Any]]) -> Any:
    """For each choice a draw by the function of that index; each function draws its number at once.

    Args:
        choices: int32 [count], an index into `draws` each.
        count: their number.
        draws: functions of a size, which return int64 [size].
    """
    places = tf.dynamic_partition(tf.range(count), choices, len(draws))
    return tf.dynamic_stitch(
        places, [draw(tf.size(part)) for draw, part in zip(draws, places, strict=True)]
    )


def checked_seed(seed: Any) -> Any:
    """A seed for the stateless functions of `tf.random`, [2] int64.

    Raises:
        ConfigError: it is neither None, nor a number, nor two numbers.
    """
    if seed is None:
        return tf.random.uniform([2], -(2**62), 2**62, tf.int64)
    rule = "must be a whole number of 64 bits, or two of them"
    tensor = checked_tensor("seed", seed, rule)
    if not tensor.dtype.is_integer or tensor.shape not in ([], [2]):
        raise ConfigError("seed", seed, rule)
    seed = tf.cast(tensor, tf.int64)
    return tf.stack([seed, tf.zeros_like(seed)]) if seed.shape.rank == 0 else seed


def fold_in(seed: Any, number: Any) -> Any:
    """Another seed, for another part of the same step."""
    return tf.random.experimental.stateless_fold_in(seed, number)
