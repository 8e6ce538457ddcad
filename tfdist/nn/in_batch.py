"""Softmax over the items of a batch, for two towers, and how often a batch contains an item.

The items of the other examples are the negatives: they cost nothing, for the batch has them anyway.
But they are drawn by popularity, so each logit needs its correction, and the popularity has to be
known. `StreamingFrequency` estimates it while the job runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError, checked_flag, checked_integer, checked_number
from tfdist.nn.batch import (
    checked_ids,
    checked_inputs,
    checked_numbers,
    checked_rows,
    checked_tensor,
)
from tfdist.nn.placement import (
    check_outside_function,
    checked_name,
    colocated,
    colocated_variable,
    next_ps,
)
from tfdist.nn.sampled import NO_PART, cross_entropy_of_first

_LARGEST_ID = 2**62


@tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
def in_batch_softmax(
    queries: Any,
    items: Any,
    ids: Any,
    log_q: Any,
    *,
    weight: Any = None,
    remove_accidental_hits: bool = True,
    subtract_positive_log_q: bool = True,
) -> Any:
    """The softmax of each query over the items of the batch, each logit minus `log_q`.

    As `sampled_softmax`, where the sample is the rest of the batch. Without the correction (zeros
    for `log_q`) a popular item is a negative too often, and gets too small logits: Yi et al. 2019,
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations".

    Args:
        queries: [batch, dim] floating-point numbers; they are computed in float32.
        items: [batch, dim]; row i is the item that belongs to query i.
        ids: [batch] integers, the items' ids.
        log_q: [batch], the logarithm of how many times a batch contains the item on average.
            `StreamingFrequency` estimates it.
        weight: [batch] numbers, 0 for examples that are padding, as `endless_batches` yields them:
            they are no negatives of the others. Their own losses mean nothing; multiply the result
            with the weights.
        remove_accidental_hits: whether another example's item that is the same one takes no part.
        subtract_positive_log_q: see `sampled_softmax`.

    Returns:
        float32 [batch].

    Raises:
        ConfigError: an argument is wrong.
        tf.errors.InvalidArgumentError: in a run, an id is negative, or a number is NaN or infinite.
    """
    queries = checked_inputs("queries", queries, None)
    items = checked_inputs("items", items, queries.shape[1])
    items = checked_rows("items", items, "queries", queries)
    ids = checked_rows("ids", checked_ids("ids", ids, _LARGEST_ID), "queries", queries)
    log_q = checked_rows("log_q", checked_numbers("log_q", log_q), "queries", queries)
    logits = tf.matmul(queries, items, transpose_b=True)
    positive = tf.linalg.diag_part(logits)
    if checked_flag("subtract_positive_log_q", subtract_positive_log_q):
        positive -= log_q
    takes_no_part = tf.eye(tf.size(ids), dtype=tf.bool)
    if checked_flag("remove_accidental_hits", remove_accidental_hits):
        takes_no_part = tf.equal(ids[:, None], ids)
    if weight is not None:
        takes_no_part |= _is_padding(weight, "queries", queries)
    negative = logits + tf.where(takes_no_part, NO_PART, -log_q)
    return cross_entropy_of_first(tf.concat([tf.expand_dims(positive, 1), negative], 1))


class StreamingFrequency(tf.Module):
    """How often a batch contains an id on average, from the steps between its occurrences.

    For each id it averages the number of steps between two batches that contain it, and how many
    times these contain it: an item that is twice in every tenth batch has a gap of 10, and the
    frequency 2 / 10. The gaps are those of Yi et al. 2019, algorithm 2. The averages forget, so
    they follow items that become popular. Until an id has occurred in 1 / rate batches, they are
    the means of all that was seen.

    The state is on a ps in a job, 24 bytes for each bucket, and takes no vocabulary: ids share a
    bucket if they are equal modulo `num_buckets`, and then seem more frequent than they are.

    Args:
        num_buckets: number of buckets.
        rate: weight of the newest gap, above 0 and at most 1.
        name: of the variables.
    """

    def __init__(
        self, num_buckets: int, *, rate: float = 0.01, name: str = "streaming_frequency"
    ) -> None:
        super().__init__(name=checked_name(name))
        check_outside_function("StreamingFrequency")
        self._num_buckets = checked_integer("num_buckets", num_buckets, 1)
        rule = "must be a number above 0 and at most 1"
        self._rate = checked_number("rate", rate, lambda number: 0 < number <= 1, rule)
        ps = next_ps()
        self._last, self._num_batches, self._gap, self._times = (
            colocated_variable(
                ps,
                f"{name}/{leaf}",
                partial(tf.zeros, [num_buckets], dtype),
                trainable=False,
            )
            for leaf, dtype in (
                ("last", tf.int64),
                ("num_batches", tf.int64),
                ("gap", tf.float32),
                ("times", tf.float32),
            )
        )

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
    def observe(self, ids: Any, step: Any, *, weight: Any = None) -> Any:
        """Notes that the batch of this step contains the ids; returns their `log_q`.

        Args:
            ids: [batch] integers of at least 0.
            step: the number of the step, from 1; a number or a scalar tensor. Steps of several
                trainers count together, as the global step does.
            weight: [batch] numbers, 0 for ids that are padding: these are not noted.

        Returns:
            float32 [batch]: the logarithm of how often a batch contains the id on average.

        Raises:
            ConfigError: an argument is wrong.
            tf.errors.InvalidArgumentError: in a run, the step or an id is out of range.
        """
        buckets = checked_ids("ids", ids, _LARGEST_ID) % self._num_buckets
        step = _checked_step(step)
        noted_ids = buckets
        if weight is not None:
            noted_ids = tf.boolean_mask(buckets, ~_is_padding(weight, "ids", buckets))
        with colocated(self._gap.handle):
            seen, _, times_now = tf.unique_with_counts(noted_ids)
            num_batches = tf.gather(self._num_batches, seen) + 1
            rate = tf.maximum(self._rate, 1 / tf.cast(num_batches, tf.float32))
            # A slow trainer may note an older step than another one has: it counts as the same.
            last = tf.gather(self._last, seen)
            gap_now = tf.cast(tf.maximum(step - last, 0), tf.float32)

            def averaged(variable: Any, now: Any) -> Any:
                before = tf.gather(variable, seen)
                return tf.maximum(before + rate * (now - before), 1.0)

            with tf.control_dependencies([gap_now]):  # a graph might note the step before it reads
                noted = tf.maximum(last, step)
            updates = [
                tf.raw_ops.ResourceScatterUpdate(
                    resource=variable.handle, indices=seen, updates=values
                )
                for variable, values in (
                    (self._last, noted),
                    (self._num_batches, num_batches),
                    (self._gap, averaged(self._gap, gap_now)),
                    (self._times, averaged(self._times, tf.cast(times_now, tf.float32))),
                )
            ]
            with tf.control_dependencies([] if tf.executing_eagerly() else updates):
                # An id that only padding has may have been in no batch yet.
                times, gap = (
                    tf.maximum(tf.gather(variable, buckets), 1.0)
                    for variable in (self._times, self._gap)
                )
                return tf.math.log(times / gap)


def _checked_step(step: Any) -> Any:
    step = checked_tensor("step", step, "must be an integer")
    if not step.dtype.is_integer or step.shape != []:
        raise ConfigError("step", step, "must be an integer")
    step = tf.cast(step, tf.int64)
    rule = "must be at least 1; a global step begins with 0, so pass global_step + 1"
    if tf.executing_eagerly():
        if step < 1:
            raise ConfigError("step", int(step), rule)
        return step
    with tf.control_dependencies([tf.debugging.Assert(step >= 1, [f"step {rule}; it is", step])]):
        return tf.identity(step)


def _is_padding(weight: Any, like_field: str, like: Any) -> Any:
    weight = checked_rows("weight", checked_numbers("weight", weight), like_field, like)
    return tf.equal(weight, 0)
