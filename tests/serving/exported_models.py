"""Models that tfdist exports for tests of the server, each with other kinds of inputs."""

from __future__ import annotations

import tensorflow as tf

from tfdist.export import export_model

NUM_IDS, WIDTH = 10, 3


class Mixed(tf.Module):
    """Adds up all that a row has: an id, a text by its length, and the values of a SparseTensor."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.range(NUM_IDS, dtype=tf.float32))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, "ids"),
            tf.TensorSpec([None], tf.int32, "small"),
            tf.TensorSpec([None, WIDTH], tf.float32, "dense"),
            tf.TensorSpec([None], tf.string, "word"),
            tf.SparseTensorSpec([None, None], tf.float32),
        ]
    )
    def __call__(self, ids, small, dense, word, tags):
        whole = tf.cast(small + tf.strings.length(word), tf.float32)
        real = tf.gather(self.table, ids) + tf.reduce_sum(dense, 1)
        return {"score": real + whole + tf.sparse.reduce_sum(tags, 1)}


class Twice(tf.Module):
    """An input of any shape."""

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, "x")])
    def __call__(self, x):
        return {"y": 2 * x}


def mixed(folder):
    """Exports a model whose ids are checked."""
    return export_model(Mixed(), folder, ids={"ids": NUM_IDS})


def any_rank(folder):
    """Saves, since the exporter refuses it, a model with an input of any rank."""
    module = Twice()
    tf.saved_model.save(module, str(folder / "1"), signatures=module.__call__)
