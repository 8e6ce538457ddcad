"""The output weights of a model with many classes, sharded over the ps.

A `ClassTable` is made of variables of the graph in a TensorFlow 1 script, of ShardedVariables under
the strategy of a coordinator, and of one variable each in a single process. The losses do the same
in all three.

Shards are contiguous: the first shard has the first classes. TensorFlow calls this the partition
strategy "div". The default of its v1 functions, "mod", would read the rows of other classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import tensorflow as tf

from tfdist.errors import ConfigError, checked_integer, checked_number
from tfdist.nn.batch import checked_tensor

v1 = tf.compat.v1

_Sharded = tf.__internal__.distribute.ShardedVariable
_PHILOX = 1
_NAME = re.compile("[A-Za-z][A-Za-z0-9_/]*")
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


@contextmanager
def colocated(handle: Any) -> Iterator[None]:
    """What is built in this context runs where the variable of this handle is."""
    if tf.executing_eagerly():
        with tf.device(handle.device):
            yield
        return
    graph = v1.get_default_graph()
    if not tf.inside_function():
        with tf.device(None), graph.colocate_with(handle, ignore_existing=True):
            yield
    elif tf.is_symbolic_tensor(handle):
        # A branch or a loop in a graph of TensorFlow 1. Its operations without a device get that of
        # the condition or the loop, even if they are colocated with a variable on a ps.
        outside = graph.colocate_with(None, ignore_existing=True)
        with outside, tf.device(None), tf.device(handle.device):
            yield
    else:
        # Colocation with the handle itself would fix a device in a function that may be exported.
        handle = graph.capture(handle)
        with tf.device(None), graph.colocate_with(handle, ignore_existing=True):
            yield


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
        num_shards = _num_ps_of_strategy() if num_shards is None else num_shards
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
            ids: [n] integers below num_classes.

        Returns:
            Weights [n, dim] and bias [n].

        Raises:
            ConfigError: the type or the shape is another.
            tf.errors.InvalidArgumentError: in a run, an id is out of range.
        """
        ids = checked_tensor("ids", ids, "must be integers")
        if not ids.dtype.is_integer or not ids.shape.is_compatible_with([None]):
            what = f"{ids.dtype.name} of the shape {ids.shape}"
            raise ConfigError("ids", what, "must be integers of the shape [n]")
        return sharded_lookup(self.weights, ids), sharded_lookup(self.bias, ids)


def log_unigram(counts: Any, *, pseudo_count: float = 1.0) -> Any:
    """The logarithm of each class's frequency, as the first bias of a `ClassTable`.

    With it a model begins at the frequencies instead of the uniform distribution. NCE needs that:
    it expects logits that are normalized, and takes long to get there from a bias of zero.

    Args:
        counts: [num_classes], how often each class occurs.
        pseudo_count: is added to each count, so that a class that does not occur has a finite bias.

    Returns:
        float32 [num_classes].

    Raises:
        ConfigError: a count is negative or no number, or a sum is 0.
    """
    return np.log(frequencies(counts, pseudo_count)).astype(np.float32)


def frequencies(counts: Any, pseudo_count: float) -> Any:
    """The probability of each class, float64; none is 0.

    Raises:
        ConfigError: the counts are no vector of finite numbers of at least 0, or a class never
            occurs and the pseudo count is 0.
    """
    pseudo_count = checked_number(
        "pseudo_count",
        pseudo_count,
        lambda number: 0 <= number < np.inf,
        "must be a number of at least 0",
    )
    rule = "must be a vector of finite numbers of at least 0"
    try:
        found = np.asarray(counts, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError("counts", counts, rule) from error
    if found.ndim != 1 or not found.size:
        raise ConfigError("counts", f"the shape {list(found.shape)}", rule)
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ConfigError("counts", float(found[first]), f"{rule}; the one of class {first} is not")
    sums = found + pseudo_count
    sums /= sums.max() or 1  # their sum may be too large for a number
    if not sums.all():
        first = int(np.argmin(sums))
        rule = "must be positive where pseudo_count is 0, and not 1e300 times less than another"
        raise ConfigError(f"counts[{first}]", float(found[first]), rule)
    return np.divide(sums, sums.sum())


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


@dataclass(frozen=True)
class Whole:
    """What a checkpoint contains in place of a shard's variable: that of all shards.

    Attributes:
        name: its name.
        shape: its shape.
        index: of the shard.
        bounds: the first row of the shard, and the row after its last one.
    """

    name: str
    shape: Sequence[int]
    index: int
    bounds: tuple[int, int]

    @property
    def part(self) -> str:
        """The name of the shard's variable."""
        return self.name if self.is_one_shard else f"{self.name}/part_{self.index}"

    @property
    def is_one_shard(self) -> bool:
        """Whether there is no other shard."""
        return self.bounds == (0, self.shape[0])

    def in_checkpoint(self, scope: str) -> Any:
        """Where the shard belongs, for the Saver of a graph."""
        start, stop = self.bounds
        rest = list(self.shape[1:])
        return v1.Variable.SaveSliceInfo(
            scope + self.name, list(self.shape), [start, *[0] * len(rest)], [stop - start, *rest]
        )


def check_outside_function(what: str) -> None:
    """Refuses to make variables in a tf.function, which would run that once for each trace.

    Raises:
        ConfigError: this is in one.
    """
    if tf.inside_function():
        raise ConfigError(what, "in a tf.function", "must be made outside of it")


def checked_table(table: Any) -> ClassTable:
    """The table.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(table, ClassTable):
        raise ConfigError("table", table, "must be a ClassTable")
    return table


def checked_name(name: Any) -> str:
    """The name of a module whose variables have this name.

    Raises:
        ConfigError: it is no name of a module, or of a variable.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "must be letters, digits, _ and /, and begin with a letter"
        raise ConfigError("name", name, rule)
    return name.replace("/", "_")


def next_ps() -> Any:
    """What lies on the ps whose turn it is, for `colocated_variable`."""
    if tf.executing_eagerly():
        return tf.Variable(0.0, trainable=False)  # a scalar is never partitioned
    # The device function chooses a ps for each operation of this type. It is never run.
    return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])


def colocated_variable(
    anchor: Any,
    name: str,
    first: Callable[[], Any] | np.ndarray[Any, Any],
    whole: Whole | None = None,
    *,
    trainable: bool = True,
    saved: bool = True,
) -> Any:
    """Makes a variable on the ps of another one, whatever the partitioner and devices around it.

    Args:
        anchor: that variable, or its handle.
        name: of the new variable.
        first: its first value, which is sent from here, or a function that makes it on that ps.
        whole: what it is a shard of, if it is one.
        trainable: whether optimizers change it.
        saved: whether a Saver of a graph saves it; else it is a local variable.
    """
    if tf.executing_eagerly():
        make = first if callable(first) else partial(tf.constant, first)
        # What is colocated with another variable is never partitioned.
        with tf.distribute.get_strategy().extended.colocate_vars_with(anchor):
            return tf.Variable(make, trainable=trainable, name=name)
    value: Any = None if callable(first) else _from_host(first)
    with colocated(getattr(anchor, "handle", anchor)):
        if callable(first):
            value = first()
        with v1.variable_scope(v1.get_variable_scope()) as scope:
            scope.set_partitioner(None)
            variable = v1.get_variable(
                name,
                initializer=lambda: value,
                dtype=value.dtype,
                trainable=trainable,
                collections=None if saved else [v1.GraphKeys.LOCAL_VARIABLES],
                use_resource=True,
            )
    if whole is not None and not whole.is_one_shard:
        variable._set_save_slice_info(whole.in_checkpoint(variable.op.name.removesuffix(name)))
    return variable


def check_no_replicas() -> None:
    """Raises ConfigError if the current strategy has several replicas.

    Each of them would update its own copy by its own gradients.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1:
        rule = "must have one replica, as a ParameterServerStrategy without several GPUs has"
        raise ConfigError("strategy", type(strategy).__name__, rule)


def joined(parts: list[Any]) -> Any:
    """The variables of all shards as one: what `ClassTable.weights` is."""
    if len(parts) == 1:
        return parts[0]
    return _Sharded(parts) if tf.executing_eagerly() else parts


def _from_host(values: np.ndarray[Any, Any]) -> Any:
    """A tensor of these values, which do not become a part of the graph: it has a limit of 2 GB.

    It is computed where the devices around say: a Python function is known to this process alone,
    so a ps could not call it.
    """
    tensor = tf.numpy_function(lambda: values, [], tf.as_dtype(values.dtype))
    tensor.set_shape(values.shape)
    return tensor


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


def _num_ps_of_strategy() -> int:
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy):
        return 1
    # The strategy does not show its cluster; it has connected to each task of it.
    return sum("/job:ps/" in device.name for device in tf.config.list_logical_devices("CPU"))


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
