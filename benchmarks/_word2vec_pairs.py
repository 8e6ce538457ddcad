"""Skip-gram with negative sampling as a user of tfdist.nn writes it: a loss for each pair, a tape.

Only its speed is measured, in the first steps of an epoch: a whole one would take minutes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks._word2vec_corpus import NEGATIVES, POWER, WINDOW, Corpus
from tfdist.nn import SGD, ClassTable, UnigramSampler, negative_sampling

_BATCH, _SAMPLED = 1024, 64
_RATE = 0.025 / _SAMPLED


class PairedSkipGram:
    """The model, in one process."""

    def __init__(self, corpus: Corpus, dim: int, seed: int) -> None:
        self._inputs = ClassTable(len(corpus.vocabulary), dim, seed=seed, name="inputs")
        self._outputs = ClassTable(len(corpus.vocabulary), dim, seed=seed, name="outputs")
        self._sampler = UnigramSampler(self._outputs, corpus.counts, power=POWER, pseudo_count=0)
        self._optimizer = SGD(_RATE)
        self._rng = np.random.default_rng(seed)
        self._corpus = corpus
        self._number = {word: index for index, word in enumerate(corpus.vocabulary)}
        self._keep_prob = corpus.keep_prob()
        ids = tf.TensorSpec([_BATCH], tf.int32)
        self._step = tf.function(
            self._update, autograph=False, input_signature=[ids, ids]
        ).get_concrete_function()

    def train(self, num_words: int) -> int:
        """Reads about so many words; returns how many."""
        ids: list[int] = []
        num_read = 0
        for sentence in self._corpus.sentences:
            ids += map(self._number.__getitem__, sentence)
            num_read += len(sentence)
            if num_read >= num_words:
                break
        kept = np.array(ids, np.int32)
        kept = kept[self._rng.random(len(kept), np.float32) < self._keep_prob[kept]]
        windows = self._rng.integers(1, WINDOW + 1, len(kept))
        centres, neighbours = [], []
        for distance in range(1, WINDOW + 1):
            at = np.flatnonzero(windows >= distance)
            for near in (at - distance, at + distance):
                centres.append(kept[at])
                neighbours.append(kept[near % len(kept)])
        order = self._rng.permutation(sum(map(len, centres)))
        words, nears = np.concatenate(centres)[order], np.concatenate(neighbours)[order]
        for start in range(0, len(words) - _BATCH + 1, _BATCH):
            self._step(words[start : start + _BATCH], nears[start : start + _BATCH])
        return num_read

    def _update(self, words: Any, nears: Any) -> None:
        variables = [self._inputs.weights, self._outputs.weights]
        with tf.GradientTape() as tape:
            rows, _ = self._inputs.lookup(words)
            candidates = self._sampler.sample(_SAMPLED, nears, unique=False)
            loss = tf.reduce_sum(
                negative_sampling(self._outputs, rows, nears, candidates, num_negatives=NEGATIVES)
            )
        gradients = tape.gradient(loss, variables)
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
