"""Input pipelines that never raise an error to signal their end.

A `tf.data` iterator raises OutOfRange at its end, and each trainer reaches the end at its own time.
Trainers that wait for one another hang there. The queues of synchronous training raise the same
error, so a loop that takes it for the end of the data loses data silently. A padded pipeline never
ends; it signals the end of the data in the data.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError, checked_flag, checked_integer

LARGEST_BATCH = 2**31 - 1  # `tf.sequence_mask` counts in int32


def endless_batches(
    dataset: tf.data.Dataset, batch_size: int, *, steps: int | None = None
) -> tf.data.Dataset:
    """Batches of one static size without end: all examples, then empty batches of weight 0.

    It is not autotuned, so ``tf.data.AUTOTUNE`` in it means one parallel call per core.

    Args:
        dataset: unbatched elements of any structure of dense tensors of known rank; finite, unless
            `steps` is given.
        batch_size: examples per batch, at least 1.
        steps: ends the data after this many batches, if they have not ended before.

    Returns:
        A dataset of ``(batch, weight, has_value)``. `batch` has the structure and dtypes of an
        element and shapes ``[batch_size, ...]``; padding is zeros or empty strings. `weight` is
        float32 ``[batch_size]``, 1 for an example and 0 for padding. `has_value` is a bool scalar;
        once the data have ended it stays False. The loss is
        ``sum(weight * loss) / sum(weight)``, and a step without a value applies nothing.

    Raises:
        ConfigError: `batch_size` or `steps` is too small; or the dataset has ragged or sparse
            elements, or is infinite (which only eager code can find).
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise ConfigError("dataset", dataset, "must be a tf.data.Dataset")
    batch_size = checked_integer("batch_size", batch_size, 1, LARGEST_BATCH)
    if steps is not None:
        examples = checked_integer("steps", steps, 1) * batch_size
        dataset = dataset.take(min(examples, tf.int64.max))
    # Known in eager code only.
    if tf.get_static_value(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ConfigError(
            "dataset", dataset, "is infinite, so its end cannot be padded; pass steps"
        )
    for spec in tf.nest.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank is None:
            raise ConfigError("dataset", spec, "only dense tensors of known rank can be padded")

    end = tf.data.Dataset.from_tensors(tf.nest.map_structure(_nothing, dataset.element_spec))
    batches = filled(dataset.batch(batch_size), batch_size)
    batches = batches.concatenate(filled(end, batch_size).repeat())
    # In TensorFlow 2.21 an iterator that is initialized again waits for the tuning thread of its
    # predecessor, which checks for cancellation ever more rarely, in the end every 60 s. Cancelling
    # wakes the thread (`Model::OptimizeLoop` in core/framework/model.cc) before it sets the flag
    # (`CancellationManager::StartCancelWithStatus`), so the thread may go back to sleep.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def filled(batches: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Pads each batch to `batch_size` as `endless_batches` does, and adds no empty batches."""
    # `map` spreads an element that is a plain tuple over the arguments of its function.
    is_spread = type(batches.element_spec) is tuple

    # AutoGraph has nothing to convert here, and would leave a file in the temporary folder.
    @tf.autograph.experimental.do_not_convert
    def fill_up(*element: Any) -> tuple[Any, Any, Any]:
        batch = element if is_spread else element[0]
        count = tf.shape(tf.nest.flatten(batch)[0])[0]
        full = tf.nest.map_structure(lambda tensor: _fill_up(tensor, batch_size), batch)
        return full, tf.sequence_mask(count, batch_size, dtype=tf.float32), count > 0

    return batches.map(fill_up)


def any_replica_has_value(has_value: Any) -> Any:
    """True on all replicas if any replica has an example in this step; a bool scalar.

    For collective training (`MultiWorkerMirroredStrategy`): call it in each step within
    `strategy.run`, and stop when it is False. All replicas then take the same number of steps, and
    none waits in an all-reduce for a replica that has left. It is an all-reduce itself.

    Args:
        has_value: of this replica's batch, from `endless_batches`.

    Raises:
        ConfigError: called outside of `strategy.run`.
    """
    has_value = scalar_bool("has_value", has_value)
    replica = tf.distribute.get_replica_context()
    if replica is None:
        raise ConfigError("has_value", has_value, "call it within strategy.run")
    count = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(has_value, tf.int32))
    return count > 0


def scalar_bool(field: str, value: Any) -> Any:
    """The value of a parameter as a bool scalar tensor, which it may be already.

    Raises:
        ConfigError: it is neither that nor True or False.
    """
    if not tf.is_tensor(value):
        return tf.constant(checked_flag(field, value))
    if value.dtype != tf.bool or value.shape.rank not in (None, 0):
        raise ConfigError(field, value, "must be a bool scalar tensor")
    return value


def _nothing(spec: tf.TensorSpec) -> Any:
    return tf.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype)


def _fill_up(tensor: Any, batch_size: int) -> Any:
    shape = tf.shape(tensor)

    def longer() -> Any:
        lacking = tf.concat([[batch_size - shape[0]], shape[1:]], 0)
        return tf.concat([tensor, tf.zeros(lacking, tensor.dtype)], 0)

    full = tf.cond(shape[0] < batch_size, longer, lambda: tf.identity(tensor))
    full.set_shape([batch_size, *tensor.shape[1:]])
    return full
