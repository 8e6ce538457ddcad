"""What the gradient of Keras layers captures is what the planner says."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdist.planner.activations import layer_activations
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer

S, H, HEADS = 64, 64, 4


@pytest.fixture(params=["fp32", "keras mixed_float16"])
def precision(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if request.param == "fp32" else "mixed_float16")
    yield request.param
    keras.config.set_dtype_policy(before)


def transformer(layers: int, dropout: float) -> keras.Model:
    inputs = x = keras.Input((S, H))
    for _ in range(layers):
        y = keras.layers.LayerNormalization()(x)
        attention = keras.layers.MultiHeadAttention(HEADS, H // HEADS, dropout=dropout)
        y = attention(y, y, use_causal_mask=True)
        x = x + (keras.layers.Dropout(dropout)(y) if dropout else y)
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(H)(keras.layers.Dense(4 * H, activation="gelu")(y))
        x = x + (keras.layers.Dropout(dropout)(y) if dropout else y)
    return keras.Model(inputs, x)


def captured(model: keras.Model, batch: int) -> int:
    """Bytes that the backward function takes from the forward function."""

    @tf.function
    def loss(x):
        return tf.reduce_sum(tf.cast(model(x, training=True), tf.float32))

    function = loss.get_concrete_function(tf.TensorSpec((batch, S, H), tf.float32))
    _, backward = function._delayed_rewrite_functions.forward_backward()
    tensors = {id(each): each for each in backward.captured_inputs if each.dtype != tf.resource}
    return sum(each.dtype.size * int(np.prod(each.shape)) for each in tensors.values())


def test_a_keras_layer_keeps_what_the_planner_says(precision):
    dropout = 0.1 if precision == "fp32" else 0.0
    two, one = transformer(2, dropout), transformer(1, dropout)
    # The difference has no inputs; that of two batches has no weights.
    layer = captured(two, 3) - captured(one, 3) - captured(two, 1) + captured(one, 1)
    planned = layer_activations(
        Transformer(2, H, HEADS, 1000),
        Training(2, S, precision=precision, dropout=dropout > 0),
        framework="tensorflow",
    )
    assert layer == pytest.approx(planned.value, rel=0.01)
