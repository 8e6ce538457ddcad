"""What the tests of tfdist.nn share: models, the softmax of a textbook, and draws by seed."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist import nn

v1 = tf.compat.v1

# float32 rounds to 6e-8. What is compared is of the size of 1 to 10, and a sum of up to 200 terms.
ROUNDING = 1e-5
MODES = ["eager", "function", "graph"]


class Model:
    """A table whose weights and bias are known, and a batch for it.

    The bias falls as Zipf's law does. The labels are a sample of the model's own distribution.
    """

    def __init__(self, num_classes: int, dim: int, batch: int, *, scale: float = 1.0) -> None:
        rng = np.random.default_rng(0)
        self.weights = (scale * rng.normal(size=(num_classes, dim))).astype(np.float32)
        self.bias = -np.log(np.arange(1, num_classes + 1)).astype(np.float32)
        self.inputs = rng.normal(size=(batch, dim)).astype(np.float32)
        prob = self.probabilities
        self.labels = np.array([rng.choice(num_classes, p=row) for row in prob])
        self.num_classes, self.dim, self.batch = num_classes, dim, batch

    @property
    def logits(self) -> Any:
        return self.inputs.astype(np.float64) @ self.weights.T + self.bias

    @property
    def probabilities(self) -> Any:
        exp = np.exp(self.logits)
        return exp / exp.sum(1, keepdims=True)

    def table(self, num_shards: int = 1) -> nn.ClassTable:
        return nn.ClassTable(
            self.num_classes,
            self.dim,
            num_shards=num_shards,
            weights_init=self.weights,
            bias_init=self.bias,
        )

    def full_softmax(self, table: nn.ClassTable, inputs: Any) -> Any:
        """The exact loss, as a textbook has it: the logits of all classes as one matrix."""
        weights, bias = (tf.concat(parts, 0) for parts in zip(*pairs(table), strict=True))
        logits = tf.matmul(inputs, weights, transpose_b=True) + bias
        return tf.nn.sparse_softmax_cross_entropy_with_logits(self.labels, logits)


def pairs(table: nn.ClassTable) -> list[tuple[Any, Any]]:
    return [(tf.identity(shard.weights), tf.identity(shard.bias)) for shard in table.shards]


def loss_and_gradients(
    table: nn.ClassTable, inputs: Any, loss: Callable[[nn.ClassTable, Any], Any]
) -> list[Any]:
    """The losses [batch]; the gradients of their sum, by the weights, the bias and the inputs.

    Those of the shards are joined, and all are dense.
    """
    inputs = tf.convert_to_tensor(inputs)
    if tf.executing_eagerly():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            losses = loss(table, inputs)
            total = tf.reduce_sum(losses)
        found = tape.gradient(total, [*table.trainable_variables, inputs])
    else:
        losses = loss(table, inputs)
        found = tf.gradients(tf.reduce_sum(losses), [*table.trainable_variables, inputs])
    *of_table, of_inputs = (tf.convert_to_tensor(gradient) for gradient in found)
    return [losses, tf.concat(of_table[0::2], 0), tf.concat(of_table[1::2], 0), of_inputs]


def evaluate(
    mode: str, make: Callable[[], Any], compute: Callable[[Any], Any]
) -> list[np.ndarray[Any, Any]]:
    """The tensors that `compute` makes of what `make` returns, as arrays.

    Args:
        mode: "eager", "function" for a tf.function, or "graph" for a graph of TensorFlow 1.
        make: makes the variables.
        compute: is given them.
    """
    if mode == "graph":
        with tf.Graph().as_default(), v1.Session() as session:
            tensors = compute(make())
            session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
            return session.run(tensors)
    made = make()
    run = tf.function(compute, autograph=False) if mode == "function" else compute
    return [tensor.numpy() for tensor in run(made)]


def differences(found: Iterable[Any], expected: Iterable[Any]) -> list[float]:
    """The largest of each pair of arrays."""
    return [np.abs(one - other).max() for one, other in zip(found, expected, strict=True)]


def of_draws(compute: Callable[[Any], Any], count: int, *, first: int = 0) -> np.ndarray[Any, Any]:
    """What `compute` returns, float32, for each seed from `first` on, stacked."""

    @tf.function(autograph=False)
    def run() -> Any:
        return tf.map_fn(compute, tf.range(first, first + count), fn_output_signature=tf.float32)

    return run().numpy()
