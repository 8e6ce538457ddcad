"""The model of benchmarks.serving: a score from a user and an item."""

from __future__ import annotations

import os
from typing import Any

IDS = 10_000
_SIZE, _HIDDEN, _SEED = 32, 32, 1


def export(folder: str | os.PathLike[str]) -> str:
    """Exports two tables of 10,000 x 32 numbers and the layers 64 -> 32 -> 1; returns the path."""
    import tensorflow as tf

    from tfdist.export import export_model

    def variable(*shape: int) -> Any:
        return tf.Variable(tf.random.stateless_normal(shape, [_SEED, sum(shape)], stddev=0.1))

    class Recommender(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = variable(IDS, _SIZE), variable(IDS, _SIZE)
            self.weights, self.bias = variable(2 * _SIZE, _HIDDEN), variable(_HIDDEN)
            self.last_weights, self.last_bias = variable(_HIDDEN, 1), variable(1)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.int64, name="user"),
                tf.TensorSpec([None], tf.int64, name="item"),
            ]
        )
        def __call__(self, user: Any, item: Any) -> dict[str, Any]:
            rows = tf.concat([tf.gather(self.users, user), tf.gather(self.items, item)], axis=1)
            hidden = tf.nn.relu(rows @ self.weights + self.bias)
            return {"score": tf.squeeze(hidden @ self.last_weights + self.last_bias, axis=1)}

    return export_model(Recommender(), folder, ids={"user": IDS, "item": IDS}).path
