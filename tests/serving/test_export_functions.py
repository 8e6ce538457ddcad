"""What TensorFlow 2 trains, exported: functions, modules and Keras models."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdist.errors import ConfigError
from tfdist.export import export_model
from tfdist.export.verify import served

keras = tf.keras
IDS = np.array([3, 1], np.int64)


class Scorer(tf.Module):
    """Looks up a row for each id, and a text in a table."""

    def __init__(self):
        super().__init__()
        self.rows = tf.Variable(np.arange(20, dtype=np.float32).reshape(10, 2))
        keys, values = tf.constant(["a", "b"]), tf.constant([1.0, 2.0])
        initializer = tf.lookup.KeyValueTensorInitializer(keys, values)
        self.table = tf.lookup.StaticHashTable(initializer, default_value=0.0)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string)]
    )
    def __call__(self, ids, word):
        return {"score": tf.reduce_sum(tf.gather(self.rows, ids), 1) + self.table.lookup(word)}


def test_a_module_with_a_table(tmp_path):
    exported = export_model(Scorer(), tmp_path / "model", ids={"ids": 10})
    assert set(exported.inputs) == {"ids", "word"}
    assert exported.signatures == ("serving_default", "examples")
    with served(exported.path) as model:
        answer = model.run({"ids": IDS, "word": np.array([b"b", b"?"], object)})
        assert answer["score"].tolist() == [13 + 2, 5]
        with pytest.raises(tf.errors.InvalidArgumentError, match="ids: ids must be at least 0"):
            model.run({"ids": IDS + 7, "word": np.array([b"b", b"?"], object)})


def test_a_function_without_a_signature_needs_inputs(tmp_path):
    weight = tf.Variable(2.0)

    @tf.function
    def twice(x):
        return x * weight

    with pytest.raises(ConfigError, match=r"inputs: .*must be given"):
        export_model(twice, tmp_path / "model")
    spec = tf.TensorSpec([None, 3], tf.float32)
    exported = export_model(twice, tmp_path / "model", inputs={"x": spec}, outputs=["y"])
    assert exported.outputs == ("y",)
    with served(exported.path) as model:
        assert model.run({"x": np.ones([1, 3], np.float32)})["y"].tolist() == [[2, 2, 2]]


def test_a_sparse_input(tmp_path):
    @tf.function(input_signature=[tf.SparseTensorSpec([None, None], tf.float32)])
    def total(x):
        return {"total": tf.sparse.reduce_sum(x, 1)}

    exported = export_model(total, tmp_path / "model")
    value = tf.compat.v1.SparseTensorValue([[0, 1], [0, 4]], np.float32([2, 3]), [1, 5])
    with served(exported.path) as model:
        assert model.run({"x": value})["total"].tolist() == [5]


@pytest.mark.parametrize("name", ["class", "user id", "input_1", "a/b"])
def test_an_input_of_any_name(name, tmp_path):
    one, other = keras.Input([1]), keras.Input([1])
    model = keras.Model({"x": one, name: other}, {name: one + other})
    exported = export_model(model, tmp_path / "model")
    with served(exported.path) as loaded:
        assert loaded.run({"x": [[1.0]], name: [[2.0]]})[name].tolist() == [[3]]


def _functional(several):
    ids = keras.Input([2], dtype="int64", name="ids")
    dense = keras.Input([3], name="dense")
    looked_up = keras.layers.Flatten()(keras.layers.Embedding(10, 4)(ids))
    joined = keras.layers.Concatenate()([looked_up, dense])
    inputs = {"ids": ids, "dense": dense} if several is dict else [ids, dense]
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(joined))


@pytest.mark.parametrize("several", [dict, list])
def test_a_functional_keras_model(several, tmp_path):
    model = _functional(several)
    exported = export_model(model, tmp_path / "model", outputs=["score"])
    values = {"ids": np.ones([2, 2], np.int64), "dense": np.ones([2, 3], np.float32)}
    expected = model(values if several is dict else list(values.values()))
    with served(exported.path) as loaded:
        np.testing.assert_allclose(loaded.run(values)["score"], expected, rtol=1e-5)


def test_a_sequential_keras_model(tmp_path):
    model = keras.Sequential([keras.Input([3], name="x"), keras.layers.Dense(2)])
    exported = export_model(model, tmp_path / "model", freeze=True)
    assert set(exported.inputs) == {"x"}


def test_a_keras_subclass_needs_inputs(tmp_path):
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(1)

        def call(self, values):
            return self.layer(values["a"]) + self.layer(values["b"])

    model = Twice()
    with pytest.raises(ConfigError, match=r"inputs: .*must be given"):
        export_model(model, tmp_path / "model")
    spec = tf.TensorSpec([None, 2], tf.float32)
    exported = export_model(model, tmp_path / "model", inputs={"a": spec, "b": spec})
    assert exported.outputs == ("output_0",)


def test_a_batch_size_of_a_function_is_named(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def baked(x):
        return tf.reshape(x, [4, 2])

    with pytest.raises(ConfigError, match=r"batch size.*1.* at .*Reshape"):
        export_model(baked, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []
