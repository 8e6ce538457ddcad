"""The files and the model of the input benchmark: clicks, embeddings and three dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tfdist
from tfdist.train import graph

BATCH = 1024
USERS, ITEMS, DIM, DENSE = 20_000, 10_000, 32, 13
LAYERS = (256, 128, 1)
_DISTINCT = 8192  # records, which are repeated
_LEARNING_RATE = 0.01


class Features(NamedTuple):
    """A batch of records."""

    user: Any
    item: Any
    dense: Any
    label: Any


def write_files(folder: Path, files: int, records: int) -> list[str]:
    """Writes TFRecord files with `records` records each; returns their paths."""
    import tensorflow as tf

    rng = np.random.default_rng(1)
    distinct = [_example(rng).SerializeToString() for _ in range(_DISTINCT)]
    paths = [str(folder / f"part-{number:02d}") for number in range(files)]
    for path in paths:
        with tf.io.TFRecordWriter(path) as writer:
            for number in range(records):
                writer.write(distinct[number % _DISTINCT])
    return paths


def _example(rng: np.random.Generator) -> Any:
    import tensorflow as tf

    example = tf.train.Example()
    feature = example.features.feature
    feature["user"].int64_list.value.append(int(rng.integers(USERS)))
    feature["item"].int64_list.value.append(int(rng.integers(ITEMS)))
    feature["dense"].float_list.value.extend(rng.standard_normal(DENSE))
    feature["label"].float_list.value.append(float(rng.integers(2)))
    return example


def parse(records: Any) -> Features:
    """Parses a batch of serialized examples; an empty string, which is padding, gives zeros."""
    import tensorflow as tf

    shapes = Features([], [], [DENSE], [])
    kinds = Features(tf.int64, tf.int64, tf.float32, tf.float32)
    return Features(
        **tf.io.parse_example(
            records,
            {
                name: tf.io.FixedLenFeature(shape, kind, np.zeros(shape, kind.as_numpy_dtype))
                for name, shape, kind in zip(Features._fields, shapes, kinds, strict=True)
            },
        )
    )


class Model:
    """Variables on the ps; each peer builds its own update of them."""

    def __init__(self, task: tfdist.Task) -> None:
        import tensorflow as tf

        self._device = graph.device_setter(task)
        with tf.compat.v1.device(self._device):
            self._step = tf.compat.v1.train.get_or_create_global_step()
            self._users = _variable("users", [USERS, DIM])
            self._items = _variable("items", [ITEMS, DIM])
            sizes = (2 * DIM + DENSE, *LAYERS)
            self._layers = [
                (_variable(f"kernel{n}", [size, after]), _variable(f"bias{n}", [after]))
                for n, (size, after) in enumerate(zip(sizes, LAYERS, strict=False))
            ]
            self._optimizer = tf.compat.v1.train.AdagradOptimizer(_LEARNING_RATE)

    def gradients(self, features: Features, weight: Any = None) -> Any:
        """The gradients of a batch; each example counts by its weight."""
        import tensorflow as tf

        with tf.compat.v1.device(self._device):
            factors = [
                tf.compat.v1.nn.embedding_lookup(table, numbers)
                for table, numbers in ((self._users, features.user), (self._items, features.item))
            ]
            values = tf.concat([*factors, features.dense], 1)
            for number, (kernel, bias) in enumerate(self._layers):
                values = values if number == 0 else tf.nn.relu(values)
                values = tf.matmul(values, kernel) + bias
            losses = tf.nn.sigmoid_cross_entropy_with_logits(features.label, values[:, 0])
            loss = tf.reduce_mean(losses)
            if weight is not None:
                loss = tf.reduce_sum(weight * losses) / tf.reduce_sum(weight)
            return self._optimizer.compute_gradients(loss)

    def apply(self, gradients: Any) -> Any:
        """The operation that applies the gradients and counts the step."""
        import tensorflow as tf

        with tf.compat.v1.device(self._device):
            return self._optimizer.apply_gradients(gradients, global_step=self._step)


def _variable(name: str, shape: Sequence[int]) -> Any:
    import tensorflow as tf

    initial = tf.compat.v1.random_normal_initializer(stddev=0.05)
    return tf.compat.v1.get_variable(name, shape, initializer=initial, use_resource=True)
