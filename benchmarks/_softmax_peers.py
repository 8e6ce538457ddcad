"""The training steps that the benchmark of the softmax compares, as operations of one graph.

All peers of a table share its variables and one Adagrad, so the largest table fits into memory
once. A step draws one of 64 fixed batches of labels, which follow Zipf's law as the sampler does,
computes the loss and the gradients of the inputs and of the table, and applies those of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tfdist import nn  # imports TensorFlow only when one of its names is used

BATCH, DIM = 256, 64
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
FEW, MANY = 64, 512  # candidates

INPUTS = "inputs only"
DENSE, CHUNKED, FORWARD = "full, tf.matmul", "full_softmax", "full_softmax, forward only"
SAMPLED, ON_PS, TF_NN = "sampled_softmax", "sampled_softmax_on_ps", "tf.nn.sampled_softmax_loss"
NCE, IN_BATCH = "nce", "in_batch_softmax"

_BATCHES = 64
_RATE = 0.1


@dataclass(frozen=True)
class Peer:
    """One way to train, or to evaluate.

    Attributes:
        kind: its loss.
        sampled: number of candidates, or None.
    """

    kind: str
    sampled: int | None = None

    def __str__(self) -> str:
        return self.kind if self.sampled is None else f"{self.kind}, {self.sampled}"

    def steps(self, classes: int, scale: int) -> int:
        """How many steps a block of this peer has; those that take seconds run once."""
        if self.kind in _MOST:
            return max(1, scale * 3_000 // classes)
        return 10 * scale

    def fits(self, classes: int) -> bool:
        """Whether one step is short enough, and its memory small enough, to be measured."""
        return classes <= _MOST.get(self.kind, SIZES[-1])


# A step of the full softmax at 1M classes takes 6 s and 3 GB, a pass at 10M half a minute.
_MOST = {DENSE: 100_000, CHUNKED: 100_000, FORWARD: 1_000_000}

PEERS = (
    Peer(INPUTS),
    Peer(DENSE),
    Peer(CHUNKED),
    Peer(FORWARD),
    *[Peer(kind, sampled) for sampled in (FEW, MANY) for kind in (SAMPLED, ON_PS, TF_NN)],
    Peer(NCE, FEW),
    Peer(IN_BATCH),
)


class Table:
    """A class table in the current graph, with the steps of its peers.

    Args:
        classes: number of classes.
        shards: number of its shards.
    """

    def __init__(self, classes: int, shards: int) -> None:
        import tensorflow as tf

        self._tf = tf
        self._table = nn.ClassTable(classes, DIM, num_shards=shards, name=f"table{classes}")
        self._sampler = nn.LogUniformSampler(classes)
        self._optimizer = nn.Adagrad(_RATE)
        self._optimizer.build([self._table])
        rng = np.random.default_rng(classes)
        logs = rng.uniform(0, np.log(classes + 1), [_BATCHES, BATCH])
        self._labels = tf.constant(np.minimum(np.exp(logs).astype(np.int64) - 1, classes - 1))
        self._inputs = tf.constant(rng.normal(0, 0.3, [BATCH, DIM]).astype(np.float32))

    def step(self, peer: Peer) -> Any:
        """The operation of one step."""
        tf = self._tf
        number = tf.random.uniform([], 0, _BATCHES, tf.int32)
        labels = tf.gather(self._labels, number)
        # Another factor in each step, so that no part of it is a constant.
        inputs = self._inputs * tf.random.uniform([], 0.5, 1.5)
        if peer.kind == INPUTS:
            return tf.group(labels, inputs)
        loss = tf.reduce_mean(self._losses()[peer.kind](peer.sampled, inputs, labels))
        if peer.kind == FORWARD:
            return loss.op
        variables = self._table.trainable_variables
        d_inputs, *gradients = tf.compat.v1.gradients(loss, [inputs, *variables])
        update = self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return tf.group(d_inputs, update)

    def _losses(self) -> dict[str, Callable[..., Any]]:
        exact = partial(_without_sample, nn.full_softmax, self._table)
        return {
            DENSE: self._dense,
            CHUNKED: exact,
            FORWARD: exact,
            SAMPLED: partial(self._with_candidates, nn.sampled_softmax),
            NCE: partial(self._with_candidates, nn.nce),
            ON_PS: self._on_ps,
            TF_NN: self._tf_nn,
            IN_BATCH: self._in_batch,
        }

    def _dense(self, _: None, inputs: Any, labels: Any) -> Any:
        tf, shards = self._tf, self._table.shards
        weights = tf.concat([shard.weights for shard in shards], 0)
        bias = tf.concat([shard.bias for shard in shards], 0)
        logits = tf.matmul(inputs, weights, transpose_b=True) + bias
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

    def _with_candidates(self, loss: Any, sampled: int, inputs: Any, labels: Any) -> Any:
        return loss(self._table, inputs, labels, self._sampler.sample(sampled, labels))

    def _on_ps(self, sampled: int, inputs: Any, labels: Any) -> Any:
        return nn.sampled_softmax_on_ps(self._table, inputs, labels, self._sampler, sampled)

    def _tf_nn(self, sampled: int, inputs: Any, labels: Any) -> Any:
        shards = self._table.shards
        return self._tf.compat.v1.nn.sampled_softmax_loss(
            [shard.weights for shard in shards],
            [shard.bias for shard in shards],
            labels[:, None],
            inputs,
            sampled,
            self._table.num_classes,
            partition_strategy="div",
        )

    def _in_batch(self, _: None, inputs: Any, labels: Any) -> Any:
        items, _bias = self._table.lookup(labels)
        log_q = self._sampler.log_prob(labels) + self._tf.math.log(float(BATCH))
        return nn.in_batch_softmax(inputs, items, labels, log_q)


def _without_sample(loss: Any, table: nn.ClassTable, _: None, inputs: Any, labels: Any) -> Any:
    return loss(table, inputs, labels)
