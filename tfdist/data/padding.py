"""Input pipelines in which no error means "the end".

At its end a `tf.data` iterator raises OutOfRange, and each trainer comes there at its own time. In
a job whose trainers wait for one another that is where it hangs, or loses data without a word,
since the queues of synchronous training raise the same error. A padded pipeline never ends: it
says in the data itself that nothing is left.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError


def endless_batches(
    dataset: tf.data.Dataset, batch_size: int, *, steps: int | None = None
) -> tf.data.Dataset:
    """Batches of one static size for ever: the real ones, then empty ones of weight 0.

    Args:
        dataset: elements of any structure of dense tensors, of known rank; finite, unless `steps`
            is given.
        batch_size: examples in a batch, at least 1.
        steps: batches after which the data end, if they have not ended before.

    Returns:
        A dataset of ``(batch, weight, has_value)``: `batch` has the structure and the dtypes of
        an element, with `batch_size` in front of its shape; `weight` is float32 ``[batch_size]``,
        1 for a real example and 0 for padding; `has_value` is a bool scalar, False for ever once
        the data has ended. Padding is zeros, or empty strings. A loss is
        ``sum(weight * loss) / sum(weight)``, and a step without a value applies nothing. It is not
        autotuned: ``tf.data.AUTOTUNE`` is then one call for each core.

    Raises:
        ConfigError: `batch_size` or `steps` is too small, the dataset is infinite (found in eager
            code only), or has ragged or sparse elements.
    """
    for field, value in {"batch_size": batch_size, "steps": 1 if steps is None else steps}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(field, value, "a whole number, at least 1")
    if steps is not None:
        dataset = dataset.take(steps * batch_size)
    # While a graph is being built, TensorFlow cannot tell.
    if tf.get_static_value(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ConfigError("dataset", dataset, "infinite, so it has no end to pad; give the steps")
    for spec in tf.nest.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank is None:
            raise ConfigError("dataset", spec, "only dense tensors of known rank can be padded")

    end = tf.data.Dataset.from_tensors(tf.nest.map_structure(_nothing, dataset.element_spec))
    batches = filled(dataset.batch(batch_size), batch_size)
    batches = batches.concatenate(filled(end, batch_size).repeat())
    # With TensorFlow 2.21 an iterator that is started again may wait until the thread that tunes
    # the one before looks up, which it does less and less often: after 60 s in the end. Whoever
    # cancels it wakes it first (`Model::OptimizeLoop` in core/framework/model.cc) and says so
    # afterwards (`CancellationManager::StartCancelWithStatus`), so that it may sleep again.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def filled(batches: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Pads each batch of a batched dataset to `batch_size`, as `endless_batches` does.

    It has no end of empty ones: as many batches come out as go in.
    """
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
    """Whether any replica has something in this step, as a bool scalar; the same for all of them.

    An all-reduce, for collective training (`MultiWorkerMirroredStrategy`): call it in each step
    within `strategy.run`, and stop when it says no. So all replicas take the same number of steps,
    and none waits in an all-reduce for one that has left.

    Args:
        has_value: of this replica's batch, as `endless_batches` gives it.

    Raises:
        ConfigError: it was called outside of `strategy.run`.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None:
        raise ConfigError("has_value", has_value, "call it in a function that strategy.run runs")
    count = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(has_value, tf.int32))
    return count > 0


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
