"""Losses whose logits are computed where the rows are.

Inputs go to each ps, and for each example a sum and the label's logit come back; in the backward
pass the gradient of the inputs does. No row, no id of a candidate, and no logit of another class
leaves a ps, and neither does the gradient of its rows.

TensorFlow would put the backward pass where the loss is asked for. So it is written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from tfdist.errors import ConfigError, checked_flag, checked_integer
from tfdist.nn.batch import checked_ids, checked_inputs, checked_rows
from tfdist.nn.class_table import ClassTable, Shard, checked_table
from tfdist.nn.sampled import NO_PART, cross_entropy_of_first
from tfdist.nn.samplers import Sampler, checked_seed, fold_in

# 8 MB of logits for a batch of 256.
CHUNK = 8192


@tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
def full_softmax(table: ClassTable, inputs: Any, labels: Any, *, chunk: int = CHUNK) -> Any:
    """The exact softmax over all classes.

    Each ps computes the logarithm of its own sum of exponentials, and the trainer adds them. A ps
    goes through its classes in chunks and keeps a running sum, in the backward pass again: so it
    holds [batch, chunk] logits, never [batch, num_classes]. This is the way of Wijmans et al. 2024,
    "Cut Your Losses in Large-Vocabulary Language Models".

    The gradient of the weights is dense, as large as the table: every class has a part in every
    loss. So this loss trains small tables, and evaluates large ones.

    Args:
        table: the classes.
        inputs: [batch, dim] floating-point numbers; they are computed in float32.
        labels: [batch] integers.
        chunk: how many classes a ps computes together.

    Returns:
        float32 [batch]: -log P(label).

    Raises:
        ConfigError: an argument is wrong.
        tf.errors.InvalidArgumentError: in a run, a label is out of range, or an input is NaN or
            infinite.
    """
    chunk = checked_integer("chunk", chunk, 1)
    inputs = checked_inputs("inputs", inputs, checked_table(table).dim)
    labels = checked_ids("labels", labels, table.num_classes)
    labels = checked_rows("labels", labels, "inputs", inputs)
    terms = [_exact_term(shard, labels, chunk)(inputs) for shard in table.shards]
    log_sums, positives = zip(*terms, strict=True)
    return tf.reduce_logsumexp(tf.stack(log_sums), 0) - tf.add_n(positives)


@tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
def sampled_softmax_on_ps(
    table: ClassTable,
    inputs: Any,
    labels: Any,
    sampler: Sampler,
    num_sampled: int,
    *,
    remove_accidental_hits: bool = True,
    seed: Any = None,
) -> Any:
    """`sampled_softmax` with candidates that each ps draws and scores itself.

    Each shard gets a part of the sample by its share of the sampler's distribution, at least one
    draw, and draws with replacement. The sum over the sample is on average the sum over all
    classes, as in `sampled_softmax`; the label counts once (`subtract_positive_log_q=False`).

    A step moves 2 batch dim numbers for each ps, whatever the size of the sample. `sampled_softmax`
    moves 2 (batch + num_sampled) dim for all together, and computes on the trainer.

    Args:
        table, inputs, labels, remove_accidental_hits: as for `sampled_softmax`.
        sampler: for the classes of the table.
        num_sampled: size of the sample; rounded in each shard.
        seed: as for `Sampler.sample`.

    Returns:
        float32 [batch].

    Raises:
        As `sampled_softmax`.
    """
    num_sampled = checked_integer("num_sampled", num_sampled, 1)
    removes = checked_flag("remove_accidental_hits", remove_accidental_hits)
    if not isinstance(sampler, Sampler) or sampler.num_classes != checked_table(table).num_classes:
        rule = f"must be a sampler of {table.num_classes} classes"
        raise ConfigError("sampler", sampler, rule)
    inputs = checked_inputs("inputs", inputs, table.dim)
    labels = checked_ids("labels", labels, table.num_classes)
    labels = checked_rows("labels", labels, "inputs", inputs)
    seed = checked_seed(seed)
    log_sums, positives = [], []
    for index, shard in enumerate(table.shards):
        with shard.on_ps():
            drawn = _draw(shard, sampler, num_sampled, fold_in(seed, index))
        log_sum, positive = _sampled_term(shard, labels, drawn, removes)(inputs)
        log_sums.append(log_sum)
        positives.append(positive)
    return cross_entropy_of_first(tf.stack([tf.add_n(positives), *log_sums], 1))


# The logarithm of the sum of exponentials over classes of a shard, [batch], and the logits of the
# labels in it, [batch], 0 for the others; from the inputs.
_Term = Callable[[Any], tuple[Any, Any]]


class Chunk(NamedTuple):
    """Some classes of a shard, and their logits for a batch."""

    number: Any  # of the chunk
    ids: Any  # int64 [n], counted from the first class of the shard
    rows: Any  # [n, dim]
    logits: Any  # [batch, n]


def chunked(
    shard: Shard,
    inputs: Any,
    chunk: int,
    add: Callable[..., Any],
    values: Sequence[Any],
    shapes: Sequence[Any] | None = None,
) -> Any:
    """Goes through the classes of a shard; only one chunk is in memory.

    Args:
        shard: the shard; call this in its `on_ps`.
        inputs: [batch, dim], from `local`.
        chunk: how many classes belong to a chunk; the last one may be shorter.
        add: makes new values from a Chunk and the present values.
        values: the first values.
        shapes: of the values, where they change.

    Returns:
        The last values.
    """
    chunk = min(chunk, shard.size)  # the end of a larger one might be no int32

    def body(number: Any, *values: Any) -> Any:
        # A gather copies a chunk. Reading the variable would copy all of it, once an optimizer has
        # updated single rows.
        stop = tf.minimum((number + 1) * chunk, shard.size)
        ids = tf.range(tf.cast(number * chunk, tf.int64), tf.cast(stop, tf.int64))
        rows = _rows(shard.weights, ids)
        logits = tf.matmul(inputs, rows, transpose_b=True) + _rows(shard.bias, ids)
        return [number + 1, *add(Chunk(number, ids, rows, logits), *values)]

    _, *values = tf.while_loop(
        lambda number, *_: number < num_chunks(shard, chunk),
        body,
        [tf.constant(0), *values],
        shape_invariants=shapes and [tf.TensorShape([]), *shapes],
        parallel_iterations=1,
    )
    return values


def local(tensor: Any) -> Any:
    """A tensor of the trainer for a loop on a ps, which would fetch it again in each iteration.

    `tf.identity` would not do: TensorFlow's optimizer of graphs removes it (2.21).
    """
    return tf.ensure_shape(tensor, tensor.shape)


def num_chunks(shard: Shard, chunk: int) -> int:
    """Number of chunks of a shard."""
    return -(-shard.size // chunk)


def _exact_term(shard: Shard, labels: Any, chunk: int) -> _Term:
    def term(inputs: Any) -> Any:
        def add_sum(part: Chunk, log_sum: Any) -> list[Any]:
            both = tf.stack([log_sum, tf.reduce_logsumexp(part.logits, 1)])
            return [tf.reduce_logsumexp(both, 0)]

        with shard.on_ps():
            inputs = local(inputs)
            nothing = tf.fill(tf.shape(inputs)[:1], NO_PART)
            [log_sum] = chunked(shard, inputs, chunk, add_sum, [nothing])
            own = _labels_in(shard, labels)
            positive = own.logits(inputs)

        def gradient(d_log_sum: Any, d_positive: Any) -> Any:
            def add_gradients(part: Chunk, d_inputs: Any, d_weights: Any, d_bias: Any) -> list[Any]:
                d_logits = tf.exp(part.logits - log_sum[:, None]) * d_log_sum[:, None]
                d_logits += own.one_hot(part.ids, d_positive)
                return [
                    d_inputs + tf.matmul(d_logits, part.rows),
                    d_weights.write(part.number, tf.matmul(d_logits, inputs, transpose_a=True)),
                    d_bias.write(part.number, tf.reduce_sum(d_logits, 0)),
                ]

            with shard.on_ps():
                d_log_sum, d_positive = local(d_log_sum), local(d_positive)
                parts = [
                    tf.TensorArray(
                        tf.float32,
                        num_chunks(shard, chunk),
                        element_shape=[None, *variable.shape[1:]],
                        infer_shape=False,
                    )
                    for variable in (shard.weights, shard.bias)
                ]
                d_inputs, d_weights, d_bias = chunked(
                    shard, inputs, chunk, add_gradients, [tf.zeros_like(inputs), *parts]
                )
                d_weights = tf.ensure_shape(d_weights.concat(), shard.weights.shape)
                d_bias = tf.ensure_shape(d_bias.concat(), shard.bias.shape)
            return d_inputs, d_weights, d_bias

        return (log_sum, positive), gradient

    return _with_gradient(shard, term)


@dataclass(frozen=True)
class _Drawn:
    """The candidates of one shard."""

    ids: Any  # int64 [n], counted from its first class
    log_q: Any  # float32 [n]


def _draw(shard: Shard, sampler: Sampler, num_sampled: int, seed: Any) -> _Drawn:
    part = shard.start, shard.stop
    log_share = sampler.log_share(part)
    count = max(1, round(num_sampled * math.exp(log_share)))
    ids = sampler.draw_from(part, count, seed)
    log_q = sampler.log_prob(ids, part) - log_share + math.log(count)
    return _Drawn(ids - shard.start, log_q)


def _sampled_term(shard: Shard, labels: Any, drawn: _Drawn, removes_hits: bool) -> _Term:
    def term(inputs: Any, ids: Any, log_q: Any) -> Any:
        drawn = _Drawn(ids, log_q)
        with shard.on_ps():
            rows = _rows(shard.weights, drawn.ids)
            logits = tf.matmul(inputs, rows, transpose_b=True)
            logits += _rows(shard.bias, drawn.ids) - drawn.log_q
            if removes_hits:
                is_hit = tf.equal((labels - shard.start)[:, None], drawn.ids)
                logits = tf.where(is_hit, NO_PART, logits)
            log_sum = tf.reduce_logsumexp(logits, 1)
            local = _labels_in(shard, labels)
            positive = local.logits(inputs)

        def gradient(d_log_sum: Any, d_positive: Any) -> Any:
            with shard.on_ps():
                d_logits = tf.exp(logits - log_sum[:, None]) * d_log_sum[:, None]
                d_local = tf.gather(d_positive, local.examples)
                ids = tf.concat([drawn.ids, local.ids], 0)
                d_weights = [
                    tf.matmul(d_logits, inputs, transpose_a=True),
                    d_local[:, None] * tf.gather(inputs, local.examples),
                ]
                d_bias = [tf.reduce_sum(d_logits, 0), d_local]
                d_inputs = tf.matmul(d_logits, rows) + tf.scatter_nd(
                    local.examples[:, None],
                    d_local[:, None] * _rows(shard.weights, local.ids),
                    tf.shape(inputs, tf.int64),
                )
                slices = [
                    tf.IndexedSlices(
                        tf.concat(parts, 0), ids, tf.constant(variable.shape.as_list())
                    )
                    for parts, variable in ((d_weights, shard.weights), (d_bias, shard.bias))
                ]
            return d_inputs, *slices

        return (log_sum, positive), gradient

    # In a graph `tf.custom_gradient` goes back from the result to its inputs, and would find the
    # variables of a sampler on the way.
    return _with_gradient(shard, term, drawn.ids, drawn.log_q)


@dataclass(frozen=True)
class _Labels:
    """The labels of a batch that are classes of one shard."""

    shard: Shard
    examples: Any  # int64 [m]: which examples
    ids: Any  # int64 [m]: their labels, counted from the first class of the shard
    batch: Any  # int64 scalar

    def logits(self, inputs: Any) -> Any:
        """The logits of these labels by example, [batch]; 0 for other examples."""
        rows = _rows(self.shard.weights, self.ids)
        logits = tf.reduce_sum(tf.gather(inputs, self.examples) * rows, 1)
        logits += _rows(self.shard.bias, self.ids)
        return tf.scatter_nd(self.examples[:, None], logits, self.batch[None])

    def one_hot(self, ids: Any, values: Any) -> Any:
        """[batch, len(ids)]: the value of each example at its label, and 0 elsewhere."""
        places = tf.scatter_nd(self.examples[:, None], self.ids + 1, self.batch[None]) - 1
        is_label = tf.equal(places[:, None], ids)
        return tf.where(is_label, values[:, None], 0.0)


def _labels_in(shard: Shard, labels: Any) -> _Labels:
    is_here = (labels >= shard.start) & (labels < shard.stop)
    examples = tf.where(is_here)[:, 0]
    ids = tf.gather(labels, examples) - shard.start
    return _Labels(shard, examples, ids, tf.size(labels, tf.int64))


def _with_gradient(shard: Shard, term: Callable[..., tuple[Any, Any]], *others: Any) -> _Term:
    """A term whose gradients are those that it returns: of the inputs, the weights and the bias.

    The handles of the variables are inputs of the custom gradient. Of a variable itself
    `tf.custom_gradient` would read the whole value, which copies it (TensorFlow 2.21). A handle
    does not show a tape that the variable was used; an empty lookup does.
    """
    variables = shard.weights, shard.bias

    @tf.custom_gradient
    def of_handles(inputs: Any, _weights: Any, _bias: Any, *others: Any) -> Any:
        both, gradient = term(inputs, *others)

        def of_stack(d_both: Any) -> Any:
            with shard.on_ps():
                return *gradient(*tf.unstack(d_both)), *[None] * len(others)

        return tf.stack(both), of_stack  # one message, and one for its gradient

    def of_inputs(inputs: Any) -> Any:
        with shard.on_ps():
            for variable in variables:
                tf.gather(variable, tf.zeros([0], tf.int64))
            both = of_handles(inputs, *(variable.handle for variable in variables), *others)
        log_sum, positive = tf.unstack(both)
        return log_sum, positive

    return of_inputs


def _rows(variable: Any, ids: Any) -> Any:
    """Rows of a variable, in a way that `tf.custom_gradient` does not notice."""
    return tf.raw_ops.ResourceGather(resource=variable.handle, indices=ids, dtype=variable.dtype)
