"""The output weights of a model with many classes, sharded over the ps.

A `ClassTable` is made of variables of the graph in a TensorFlow 1 script, of ShardedVariables under
the strategy of a coordinator, and of one variable each in a single process. The losses do the same
in all three.

Shards are contiguous: the first shard has the first classes. TensorFlow calls this the partition
strategy "div". The default of its v1 functions, "mod", would read the rows of other classes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import tensorflow as tf

from tfdist.errors import ConfigError, checked_integer
from tfdist.nn.batch import checked_ids
from tfdist.nn.placement import (
    Whole,
    check_no_replicas,
    check_outside_function,
    checked_name,
    colocated,
    colocated_variable,
    next_ps,
    num_ps_of_strategy,
)

v1 = tf.compat.v1

_Sharded = tf.__internal__.distribute.ShardedVariable
_PHILOX = 1
_NUMBERS_PER_COUNT = 4  # 32-bit numbers that Philox makes from one value of its counter


@dataclass(frozen=True)
class Shard:
    """The classes from `start` to before `stop`, whose rows are on one ps.

    Attributes:
        start: its first class.
        stop: the class after its last one.
        weights: a variable of shape [stop - start, dim].
        bias: a variable of shape [stop - start].
    """

    start: int
    stop: int
    weights: Any
    bias: Any

    @property
    def size(self) -> int:
        """Number of its classes."""
        return self.stop - self.start

    def on_ps(self) -> AbstractContextManager[None]:
        """What is built in this context runs where the shard is, whatever the devices around it."""
        return colocated(self.weights.handle)


class ClassTable(tf.Module):
    """Weights and a bias for each class, in contiguous shards on the ps.

    The logit of a class is the inner product of its weights and the input, plus its bias.

    The shards go to the ps in turn, each with its bias: in a graph under the device function of
    `tfdist.train.device_setter` or `tf.compat.v1.train.replica_device_setter`, and in the scope of
    a `ParameterServerStrategy`, whatever its variable partitioner.

    Strategies with replicas, such as `MirroredStrategy`, are refused: these would diverge.

    A checkpoint contains the weights as one matrix and the bias as one vector, so a table with
    another number of shards can restore them.

    Args:
        num_classes: number of classes.
        dim: length of an input.
        num_shards: None makes one for each ps of the current strategy, and one without a strategy.
            In a graph pass `task.num_ps`.
        bias_init: the first bias, of shape [num_classes], such as `log_unigram(counts)`; None for
            zeros.
        weights_init: the first weights, of shape [num_classes, dim]. None makes them uniform
            between -1 / sqrt(dim) and 1 / sqrt(dim); they depend on `seed`, but not on the number
            of shards.
        seed: a whole number. Tables of other names have other weights.
        name: the variables are "NAME/weights" and "NAME/bias".

    Attributes:
        num_classes: number of classes.
        dim: length of an input.
        weights: a variable, or a ShardedVariable; in a graph, a list of variables by shard.
        bias: likewise.

    Raises:
        ConfigError: a number is out of range, or a first value has another shape.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        num_shards: int | None = None,
        bias_init: Any = None,
        weights_init: Any = None,
        seed: int = 0,
        name: str = "class_table",
    ) -> None:
        super().__init__(name=checked_name(name))
        check_outside_function("ClassTable")
        check_no_replicas()
        self.num_classes = checked_integer("num_classes", num_classes, 1)
        self.dim = checked_integer("dim", dim, 1)
        num_shards = num_ps_of_strategy() if num_shards is None else num_shards
        num_shards = checked_integer("num_shards", num_shards, 1, self.num_classes)
        seed = checked_integer("seed", seed, 0, 2**63 - 1)
        weights_init = _checked_init("weights_init", weights_init, (self.num_classes, self.dim))
        bias_init = _checked_init("bias_init", bias_init, (self.num_classes,))

        def first_weights(start: int, stop: int) -> Any:
            if weights_init is not None:
                return weights_init[start:stop]
            seeds = seed, crc32(name.encode())
            return partial(_uniform_rows, seeds, start, stop, self.dim, self.dim**-0.5)

        def first_bias(start: int, stop: int) -> Any:
            if bias_init is not None:
                return bias_init[start:stop]
            return partial(tf.zeros, [stop - start])

        weights: list[Any] = []
        bias: list[Any] = []
        self._bounds = shard_bounds(self.num_classes, num_shards)
        for index, bounds in enumerate(pairwise(self._bounds)):
            ps = next_ps()
            for variables, leaf, first, rest in (
                (weights, "weights", first_weights, [self.dim]),
                (bias, "bias", first_bias, []),
            ):
                whole = Whole(f"{name}/{leaf}", [self.num_classes, *rest], index, bounds)
                variables.append(colocated_variable(ps, whole.part, first(*bounds), whole))
        self.weights, self.bias = joined(weights), joined(bias)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards by their classes."""
        weights, bias = parts_of(self.weights), parts_of(self.bias)
        # While TensorFlow writes a SavedModel it shows one variable in place of the shards.
        bounds = self._bounds if len(weights) > 1 else (0, self.num_classes)
        parts = zip(pairwise(bounds), weights, bias, strict=True)
        return tuple(Shard(*bounds, weights, bias) for bounds, weights, bias in parts)

    @property
    def trainable_variables(self) -> tuple[Any, ...]:
        """The weights and the bias of each shard, for `tape.gradient` or `tf.gradients`."""
        return tuple(variable for shard in self.shards for variable in (shard.weights, shard.bias))

    @property
    def variables(self) -> tuple[Any, ...]:
        """As `trainable_variables`."""
        return self.trainable_variables

    def numpy(self) -> tuple[Any, Any]:
        """The weights [num_classes, dim] and the bias [num_classes], copied here; only eagerly."""
        weights, bias = zip(
            *((s.weights.numpy(), s.bias.numpy()) for s in self.shards), strict=True
        )
        return np.concatenate(weights), np.concatenate(bias)

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
    def lookup(self, ids: Any) -> tuple[Any, Any]:
        """Reads rows; each ps sends those of its own classes.

        Args:
            ids: integers below num_classes, of any shape.

        Returns:
            Weights [..., dim] and bias [...], where ... is the shape of the ids.

        Raises:
            ConfigError: the type is another, or an id is out of range.
            tf.errors.InvalidArgumentError: in a run, an id is out of range.
        """
        ids = checked_ids("ids", ids, self.num_classes, of_any_shape=True)
        return sharded_lookup(self.weights, ids), sharded_lookup(self.bias, ids)


def shard_bounds(num_classes: int, num_shards: int) -> tuple[int, ...]:
    """The first class of each shard, then their number; the first shards may have one more."""
    size, longer = divmod(num_classes, num_shards)
    return tuple(size * index + min(index, longer) for index in range(num_shards + 1))


def parts_of(value: Any) -> list[Any]:
    """The variables by shard, of what `ClassTable.weights` may be."""
    if isinstance(value, _Sharded):
        return list(value.variables)
    return [value] if isinstance(value, tf.Variable) else list(value)


def sharded_lookup(parts: Any, ids: Any) -> Any:
    """The rows of these ids; only ids and rows travel."""
    return v1.nn.embedding_lookup(parts_of(parts), ids, partition_strategy="div")


def checked_table(table: Any) -> ClassTable:
    """The table.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(table, ClassTable):
        raise ConfigError("table", table, "must be a ClassTable")
    return table


def joined(parts: list[Any]) -> Any:
    """The variables of all shards as one: what `ClassTable.weights` is."""
    if len(parts) == 1:
        return parts[0]
    return _Sharded(parts) if tf.executing_eagerly() else parts


def _uniform_rows(seeds: tuple[int, int], start: int, stop: int, dim: int, most: float) -> Any:
    """Rows of a matrix that is the same for every way to cut it into shards.

    The peak of memory is one copy of the rows. In a graph each operation reuses the memory of the
    one before, so an eager caller gets a function. TensorFlow keeps memory that it once had.
    """
    make = partial(_rows_of_graph, seeds, start, stop, dim, most)
    return tf.function(make, autograph=False)() if tf.executing_eagerly() else make()


def _rows_of_graph(seeds: tuple[int, int], start: int, stop: int, dim: int, most: float) -> Any:
    # From a constant key TensorFlow would compute all rows once more while it folds constants
    # (2.21). This is a zero that it does not know.
    zero = tf.random.uniform([1], 0, 1, tf.int64)
    key = tf.cast(seeds[0] + zero, tf.uint64)
    # Philox makes the numbers from a counter, so that rows in the middle need no rows before them.
    before = start * dim
    counter, skipped = divmod(before, _NUMBERS_PER_COUNT)
    numbers = tf.raw_ops.StatelessRandomUniformV2(
        shape=[skipped + (stop - start) * dim],
        key=key,
        counter=tf.constant([counter, seeds[1]], tf.uint64),
        alg=_PHILOX,
    )
    numbers = tf.reshape(numbers[skipped:] if skipped else numbers, [stop - start, dim])
    return (2 * numbers - 1) * most


def _checked_init(field: str, value: Any, shape: tuple[int, ...]) -> Any:
    if value is None:
        return None
    rule = f"must be finite numbers of the shape {list(shape)}"
    try:
        found = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(field, value, rule) from error
    if found.shape != shape:
        raise ConfigError(field, f"the shape {list(found.shape)}", rule)
    total = found.sum(dtype=np.float64)  # needs no second matrix
    if not np.isfinite(total):
        raise ConfigError(field, f"numbers with the sum {total}", rule)
    return found
