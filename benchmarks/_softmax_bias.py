"""The bias of the gradient of a sampled softmax, against the number of samples.

The expected gradient of the weights is the mean over many samples of the same batch; the bias is
its distance from the gradient of the full softmax, as a share of that. The noise of the mean is
subtracted from the square of the distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NUMBERS = (2, 4, 8, 16, 32, 64, 128, 256)
USUAL, NO_POSITIVE, NO_LOG_Q = (
    "log_q subtracted from all logits (default)",
    "subtract_positive_log_q=False",
    "without log_q",
)
_CLASSES, _DIM, _BATCH = 1_000, 8, 32

Biases = dict[str, list[float]]


def measure(draws: int, seed: int) -> Biases:
    """The relative bias for each of NUMBERS, by correction."""
    import tensorflow as tf

    from tfdist.nn import (
        Candidates,
        ClassTable,
        LogUniformSampler,
        full_softmax,
        log_unigram,
        sampled_softmax,
    )

    zipf = [1 / (number + 1) for number in range(_CLASSES)]
    table = ClassTable(
        _CLASSES, _DIM, bias_init=log_unigram(zipf, pseudo_count=0), seed=seed, name="bias"
    )
    sampler = LogUniformSampler(_CLASSES)
    inputs = tf.random.stateless_normal([_BATCH, _DIM], [seed, 1], stddev=2.0)
    labels = sampler.draw(_BATCH, tf.constant([seed, 2], tf.int64))

    def gradient(loss: Callable[[], Any]) -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss())
        return tf.convert_to_tensor(tape.gradient(value, table.weights))

    def losses(kind: str, sampled: int, number: Any) -> Any:
        candidates = sampler.sample(sampled, labels, seed=tf.stack([number, seed]))
        if kind == NO_LOG_Q:
            candidates = Candidates(
                candidates.ids,
                tf.zeros_like(candidates.log_q),
                tf.zeros_like(candidates.labels_log_q),
            )
        return sampled_softmax(
            table, inputs, labels, candidates, subtract_positive_log_q=kind != NO_POSITIVE
        )

    exact = gradient(lambda: full_softmax(table, inputs, labels))

    def bias(kind: str, sampled: int) -> float:
        @tf.function(autograph=False)
        def error_sums() -> Any:
            def add(number: Any, total: Any, squares: Any) -> list[Any]:
                error = gradient(lambda: losses(kind, sampled, number)) - exact
                return [number + 1, total + error, squares + tf.reduce_sum(error**2)]

            return tf.while_loop(
                lambda number, *_: number < draws, add, [0, tf.zeros_like(exact), 0.0]
            )[1:]

        total, squares = error_sums()
        square = float(tf.reduce_sum((total / draws) ** 2))
        noise = (float(squares) / draws - square) / (draws - 1)
        return (max(square - noise, 0.0) / float(tf.reduce_sum(exact**2))) ** 0.5

    return {
        kind: [bias(kind, sampled) for sampled in NUMBERS]
        for kind in (USUAL, NO_POSITIVE, NO_LOG_Q)
    }
