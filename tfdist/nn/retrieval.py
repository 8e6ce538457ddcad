"""The classes with the largest logits, and how good a model's rankings and probabilities are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError, checked_integer
from tfdist.nn.batch import checked_ids, checked_inputs
from tfdist.nn.class_table import ClassTable, Shard
from tfdist.nn.on_ps import CHUNK, Chunk, chunked, full_softmax, local
from tfdist.nn.sampled import NO_PART


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
    k = checked_integer("k", k, 1, table.num_classes)
    chunk = checked_integer("chunk", chunk, 1)
    queries = checked_inputs("queries", queries, table.dim)
    best = [_best_of_shard(shard, queries, k, chunk) for shard in table.shards]
    logits, ids = (tf.concat(parts, 1) for parts in zip(*best, strict=True))
    return _best(logits, ids, k)


def _best_of_shard(shard: Shard, queries: Any, k: int, chunk: int) -> tuple[Any, Any]:
    k = min(k, shard.size)

    def add(part: Chunk, best: Any, best_ids: Any) -> list[Any]:
        ids = tf.broadcast_to(part.ids, tf.shape(part.logits, tf.int64))
        return list(_best(tf.concat([best, part.logits], 1), tf.concat([best_ids, ids], 1), k))

    with shard.on_ps():
        queries = local(queries)
        shape = tf.stack([tf.shape(queries)[0], k])
        nothing = [tf.fill(shape, NO_PART), tf.fill(shape, tf.constant(-1, tf.int64))]
        best, ids = chunked(shard, queries, chunk, add, nothing)
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
    for inputs, labels in batches:
        losses = full_softmax(table, inputs, labels, chunk=chunk)
        total += float(tf.reduce_sum(tf.cast(losses, tf.float64)))
        count += len(losses)
    if not count:
        raise ConfigError("batches", "no example", "must have an example")
    return math.exp(total / count)


def _hits(ids: Any, labels: Any) -> Any:
    ids = tf.ensure_shape(tf.cast(ids, tf.int64), [None, None])
    labels = checked_ids("labels", labels, 2**62)
    return tf.cast(tf.equal(ids, labels[:, None]), tf.float32)
