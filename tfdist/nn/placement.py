"""Variables on the ps: which one has them, what runs there, and how a checkpoint names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.errors import ConfigError

v1 = tf.compat.v1

_NAME = re.compile("[A-Za-z][A-Za-z0-9_/]*")


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


def num_ps_of_strategy() -> int:
    """Number of ps of a `ParameterServerStrategy`; 1 without one."""
    if not isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy):
        return 1
    # The strategy does not show its cluster; it has connected to each task of it.
    return sum("/job:ps/" in device.name for device in tf.config.list_logical_devices("CPU"))


def check_no_replicas() -> None:
    """Raises ConfigError if the current strategy has several replicas.

    Each of them would update its own copy by its own gradients.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1:
        rule = "must have one replica, as a ParameterServerStrategy without several GPUs has"
        raise ConfigError("strategy", type(strategy).__name__, rule)


def check_outside_function(what: str) -> None:
    """Refuses to make variables in a tf.function, which would run that once for each trace.

    Raises:
        ConfigError: this is in one.
    """
    if tf.inside_function():
        raise ConfigError(what, "in a tf.function", "must be made outside of it")


def checked_name(name: Any) -> str:
    """The name of a module whose variables have this name.

    Raises:
        ConfigError: it is no name of a module, or of a variable.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "must be letters, digits, _ and /, and begin with a letter"
        raise ConfigError("name", name, rule)
    return name.replace("/", "_")


def _from_host(values: np.ndarray[Any, Any]) -> Any:
    """A tensor of these values, which do not become a part of the graph: it has a limit of 2 GB.

    It is computed where the devices around say: a Python function is known to this process alone,
    so a ps could not call it.
    """
    tensor = tf.numpy_function(lambda: values, [], tf.as_dtype(values.dtype))
    tensor.set_shape(values.shape)
    return tensor
