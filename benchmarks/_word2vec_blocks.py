"""Skip-gram with negative sampling in blocks of consecutive words.

The usual step reads two rows for each pair of words, and a word has six pairs. A block of 32 words
and the 5 on each side of it contains all pairs of these words. So its rows are read once, one small
matrix product has the logits of all pairs, and a band of it is the window. The block has 32
negatives of its own, which are more columns of the same product. A step has three batched matrix
products, and one lookup and one update in each of the two tables.

The expected gradient is that of word2vec. There a word has a random window of 1 to 5, here a
neighbour at distance d has the weight (6 - d) / 5, which is the probability that the window
contains it. A word has on average 6 pairs with 5 negatives each, here 32 negatives that weigh
30 / 32.

A step applies the sum of 2,048 words' gradients. word2vec applies them one by one, and each sees
the ones before it; a sum of very similar gradients overshoots. So the blocks of a step come from
all over the text, in random order, and no number changes by more than 0.1 for one row of a block.
With neighbouring blocks in a step the loss diverged, and with 128 blocks without the limit too.
Frequent words have to be subsampled: on a half of the text the loss was 3 % above gensim's without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks._word2vec_corpus import NEGATIVES, POWER, WINDOW, Array, Corpus
from tfdist.nn import ClassTable, UnigramSampler

BLOCK, BLOCKS, SAMPLED = 32, 64, 32  # words of a block, blocks of a step, negatives of a block
_MOST_CHANGE = 0.1
_COLUMNS = BLOCK + 2 * WINDOW

Rate = Callable[[float], float]  # from the share of the epoch that is done


class SkipGram:
    """The model; the tables are those of tfdist.nn in one process, without their biases."""

    def __init__(self, corpus: Corpus, dim: int, seed: int) -> None:
        num_words = len(corpus.vocabulary)
        rng = np.random.default_rng(seed)
        inputs = (rng.random((num_words, dim)) - 0.5) / dim
        self._inputs = ClassTable(num_words, dim, weights_init=inputs, name="inputs")
        self._outputs = ClassTable(
            num_words, dim, weights_init=np.zeros((num_words, dim)), name="outputs"
        )
        self._sampler = UnigramSampler(self._outputs, corpus.counts, power=POWER, pseudo_count=0)
        self._rng = rng
        self._corpus = corpus
        self._number = {word: index for index, word in enumerate(corpus.vocabulary)}
        self._keep_prob = corpus.keep_prob()
        self._build()

    def vectors(self) -> tuple[Array, Array]:
        """Those of words as inputs, and as outputs."""
        return self._inputs.weights.numpy(), self._outputs.weights.numpy()

    def train(self, rate: Rate) -> None:
        """Reads all sentences once; the words after the last whole step are left out."""
        number, sentences = self._number.__getitem__, self._corpus.sentences
        ids = np.fromiter((i for each in sentences for i in map(number, each)), np.int32)
        ids = ids[self._rng.random(len(ids), np.float32) < self._keep_prob[ids]]
        starts = np.arange(0, len(ids) - _COLUMNS + 1, BLOCK)
        starts = self._rng.permutation(starts)[: len(starts) // BLOCKS * BLOCKS]
        steps = starts.reshape(-1, BLOCKS, 1)
        for index, first in enumerate(steps):
            seed = self._rng.integers(2**62, size=2)
            words = ids[first + np.arange(_COLUMNS)]
            self._step(words, np.float32(rate(index / len(steps))), seed)

    def _build(self) -> None:
        distance = np.abs(np.arange(BLOCK)[:, None] + WINDOW - np.arange(_COLUMNS))
        band = np.where(distance > 0, np.maximum(WINDOW + 1 - distance, 0) / WINDOW, 0)
        share = band.sum(1, keepdims=True) * NEGATIVES / SAMPLED
        no_label = np.zeros((BLOCK, SAMPLED))
        weight = tf.constant(np.hstack([band, no_label + share]), tf.float32)
        label = tf.constant(np.hstack([band, no_label]), tf.float32)  # times its weight

        def step(words: Any, rate: Any, seed: Any) -> None:
            centre = words[:, WINDOW:-WINDOW]
            negatives = tf.cast(self._sampler.draw(BLOCKS * SAMPLED, seed), tf.int32)
            columns = tf.concat([words, tf.reshape(negatives, [BLOCKS, SAMPLED])], 1)
            inputs, _ = self._inputs.lookup(centre)
            outputs, _ = self._outputs.lookup(columns)
            logits = tf.matmul(inputs, outputs, transpose_b=True)
            # The gradient of the logits, times the rate.
            change = tf.sigmoid(logits) * (rate * weight) - rate * label
            for table, ids, rows in (
                (self._inputs, centre, tf.matmul(change, outputs)),
                (self._outputs, columns, tf.matmul(change, inputs, transpose_a=True)),
            ):
                # Sums the rows of equal ids.
                tf.raw_ops.ResourceScatterSub(
                    resource=table.weights.handle,
                    indices=ids,
                    updates=tf.clip_by_value(rows, -_MOST_CHANGE, _MOST_CHANGE),
                )

        self._step = tf.function(
            step,
            autograph=False,
            input_signature=[
                tf.TensorSpec([BLOCKS, _COLUMNS], tf.int32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([2], tf.int64),
            ],
        ).get_concrete_function()
