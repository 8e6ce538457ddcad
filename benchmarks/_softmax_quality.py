"""Exact perplexity against CPU time, for losses that train the same synthetic task.

There are 2,000 contexts, each with a fixed input of 16 numbers. The frequencies of 10,000 classes
follow Zipf's law, and the input shifts their logits, so the best perplexity is known. All losses
begin with the bias `log_unigram` and use Adagrad. The CPU time is that of the training steps alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

CLASSES, DIM, BATCH = 10_000, 16, 256
_CONTEXTS, _LABELS_EACH, _TEST = 2_000, 100, 4_096
_RATE = 0.1

# CPU seconds and perplexity, by loss.
Curves = dict[str, list[tuple[float, float]]]


def measure(cpu_secs: float, seed: int) -> tuple[Curves, float]:
    """The curves of all losses, each of so many CPU seconds; and the best possible perplexity."""
    task = _Task(seed)
    return {name: task.curve(loss, cpu_secs) for name, loss in _losses().items()}, task.best


def _losses() -> dict[str, Callable[..., Any]]:
    from tfdist.nn import (
        LogUniformSampler,
        full_softmax,
        nce,
        negative_sampling,
        sampled_softmax,
    )

    sampler = LogUniformSampler(CLASSES)

    def with_sample(loss: Callable[..., Any], sampled: int, unique: bool) -> Callable[..., Any]:
        def of_batch(table: Any, inputs: Any, labels: Any) -> Any:
            candidates = sampler.sample(sampled, labels, unique=unique)
            return loss(table, inputs, labels, candidates)

        return of_batch

    return {
        "full softmax": full_softmax,
        "sampled softmax, 64": with_sample(sampled_softmax, 64, True),
        "sampled softmax, 512": with_sample(sampled_softmax, 512, True),
        "NCE, 64": with_sample(nce, 64, False),
        "negative sampling, 64": with_sample(negative_sampling, 64, False),
    }


class _Task:
    """The data, and what a model of it can reach.

    Attributes:
        best: the perplexity of the distribution that made the test set.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._inputs = self._rng.normal(size=[_CONTEXTS, DIM]).astype(np.float32)
        weights = self._rng.normal(0, 0.5, [CLASSES, DIM])
        zipf = -np.log(np.arange(1, CLASSES + 1))
        labels, logs = [], []
        for each in self._inputs:
            logits = weights @ each + zipf
            log_prob = logits - np.logaddexp.reduce(logits)
            sums = np.cumsum(np.exp(log_prob))
            drawn = np.searchsorted(sums, self._rng.uniform(0, sums[-1], _LABELS_EACH))
            labels.append(drawn)
            logs.append(log_prob[drawn])
        self._labels = np.array(labels, np.int64)  # the last columns are the test set
        columns = _TEST // _CONTEXTS + 1
        self._train, self._test = self._labels[:, columns:], self._labels[:, :columns]
        self.best = float(np.exp(-np.mean(np.array(logs)[:, :columns])))

    def curve(self, loss: Callable[..., Any], cpu_secs: float) -> list[tuple[float, float]]:
        """Trains from the beginning; evaluates at up to 12 times, in a geometric series."""
        import tensorflow as tf

        from tfdist.nn import Adagrad, ClassTable, log_unigram, perplexity

        counts = np.bincount(self._train.ravel(), minlength=CLASSES)
        table = ClassTable(CLASSES, DIM, bias_init=log_unigram(counts))
        optimizer = Adagrad(_RATE)
        optimizer.build([table])

        @tf.function(autograph=False)
        def step(inputs: Any, labels: Any) -> None:
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss(table, inputs, labels))
            variables = table.trainable_variables
            gradients = tape.gradient(value, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

        step(*self._batch())  # traces; a single step hardly trains
        spent, points = 0.0, [(0.0, perplexity(table, self._test_batches()))]
        for limit in cpu_secs * np.geomspace(0.02, 1, 12):
            if spent >= limit:
                continue
            while spent < limit:
                batches = [self._batch() for _ in range(4)]
                start = time.process_time()
                for inputs, labels in batches:
                    step(inputs, labels)
                spent += time.process_time() - start
            points.append((spent, perplexity(table, self._test_batches())))
        return points

    def _batch(self) -> tuple[Any, Any]:
        contexts = self._rng.integers(_CONTEXTS, size=BATCH)
        columns = self._rng.integers(self._train.shape[1], size=BATCH)
        return self._inputs[contexts], self._train[contexts, columns]

    def _test_batches(self) -> list[tuple[Any, Any]]:
        return [(self._inputs, column) for column in self._test.T]
