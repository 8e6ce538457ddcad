"""The classes with the largest logits, and how good a model's rankings and probabilities are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError, checked_integer, checked_several
from tfdist.nn.batch import checked_ids, checked_inputs, checked_rows, checked_tensor
from tfdist.nn.class_table import ClassTable, Shard, checked_table
from tfdist.nn.on_ps import CHUNK, Chunk, chunked, full_softmax, local


@tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
def top_k(table: ClassTable, queries: Any, k: int, *, chunk: int = CHUNK) -> tuple[Any, Any]:
    """The k classes with the largest logits, exactly.

    Each ps goes through its classes in chunks and keeps its k best; the trainer gets those of each
    ps. So a ps holds [batch, chunk] logits at a time.

    Args:
        table: the classes.
        queries: [batch, dim] floating-point numbers; they are computed in float32.
        k: at most the number of classes.
        chunk: how many classes a ps computes together.

    Returns:
        Logits, float32 [batch, k], the largest first, and classes, int64 [batch, k].

    Raises:
        ConfigError: an argument is wrong.
        tf.errors.InvalidArgumentError: in a run, a query is NaN or infinite.
    """
    k = checked_integer("k", k, 1, checked_table(table).num_classes)
    chunk = checked_integer("chunk", chunk, 1)
    queries = checked_inputs("queries", queries, table.dim)
    best = [_best_of_shard(shard, queries, k, chunk) for shard in table.shards]
    logits, ids = (tf.concat(parts, 1) for parts in zip(*best, strict=True))
    return _best(logits, ids, k)


def _best_of_shard(shard: Shard, queries: Any, k: int, chunk: int) -> tuple[Any, Any]:
    def add(part: Chunk, best: Any, best_ids: Any) -> list[Any]:
        ids = tf.broadcast_to(part.ids, tf.shape(part.logits, tf.int64))
        logits, ids = tf.concat([best, part.logits], 1), tf.concat([best_ids, ids], 1)
        return list(_best(logits, ids, tf.minimum(k, tf.shape(logits)[1])))

    with shard.on_ps():
        queries = local(queries)
        nothing = [tf.zeros([tf.shape(queries)[0], 0], dtype) for dtype in (tf.float32, tf.int64)]
        best, ids = chunked(shard, queries, chunk, add, nothing, [tf.TensorShape([None, None])] * 2)
        return best, ids + shard.start


def _best(logits: Any, ids: Any, k: int) -> tuple[Any, Any]:
    best, places = tf.math.top_k(logits, k)
    return best, tf.gather(ids, places, batch_dims=1)


def recall(ids: Any, labels: Any) -> Any:
    """Whether each label is among the classes that were found: recall@k of one relevant class.

    Args:
        ids: [batch, k] integers, as from `top_k`.
        labels: [batch] integers.

    Returns:
        float32 [batch] of 0 and 1; average it over a whole test set.
    """
    return tf.reduce_max(_hits(ids, labels), 1)


def reciprocal_rank(ids: Any, labels: Any) -> Any:
    """1 / the place of each label among the classes that were found, from 1; 0 if it is missing.

    Its average over a test set is the mean reciprocal rank, MRR@k. The arguments are those of
    `recall`.
    """
    hits = _hits(ids, labels)
    ranks = tf.range(1, tf.shape(hits)[1] + 1, dtype=tf.float32)
    return tf.reduce_max(hits / ranks, 1)


def perplexity(
    table: ClassTable, batches: Iterable[tuple[Any, Any]], *, chunk: int = CHUNK
) -> float:
    """The exact perplexity of a model on a whole test set, by `full_softmax`.

    It is exp of the mean of -log P(label): how many equally likely classes would be as hard to
    guess.

    Args:
        table: the classes.
        batches: inputs [batch, dim] and labels [batch] each; an empty one counts nothing.
        chunk: as for `full_softmax`.

    Raises:
        ConfigError: there is no example, or this is a graph of TensorFlow 1. There run
            `full_softmax` for each batch, and take exp of the mean.
    """
    if not tf.executing_eagerly():
        raise ConfigError("perplexity", "a graph", "must be eager; run full_softmax instead")
    total, count = 0.0, 0
    rule = "must be pairs of inputs and labels"
    for batch in checked_several("batches", batches, rule):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ConfigError("batches", type(batch).__name__, rule)
        inputs, labels = batch
        losses = full_softmax(table, inputs, labels, chunk=chunk)
        total += float(tf.reduce_sum(tf.cast(losses, tf.float64)))
        count += len(losses)
    if not count:
        raise ConfigError("batches", "no example", "must have an example")
    try:
        return math.exp(total / count)
    except OverflowError:
        return math.inf


def _hits(ids: Any, labels: Any) -> Any:
    ids = checked_tensor("ids", ids, "must be integers")
    if not ids.dtype.is_integer:
        raise ConfigError("ids", ids.dtype.name, "must be integers")
    if not ids.shape.is_compatible_with([None, None]) or ids.shape[-1:] == [0]:
        raise ConfigError("ids", f"the shape {ids.shape}", "must have the shape [batch, k]")
    ids = tf.ensure_shape(tf.cast(ids, tf.int64), [None, None])
    labels = checked_rows("labels", checked_ids("labels", labels, 2**62), "ids", ids)
    return tf.cast(tf.equal(ids, labels[:, None]), tf.float32)
