"""SavedModels for tests of the server that no export has written."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

v1 = tf.compat.v1
METHOD = "tensorflow/serving/"


def half_plus(path: Path, number: float, ballast: int = 1) -> str:
    """0.5 x + number, with the signatures of TensorFlow Serving's own example.

    `ballast` is how many numbers another variable has, which is loaded too.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        half, added = (
            v1.get_variable("a", initializer=0.5),
            v1.get_variable("b", initializer=number),
        )
        v1.get_variable("ballast", [ballast], initializer=v1.zeros_initializer())
        x = v1.placeholder(tf.float32, [None], "x")
        serialized = v1.placeholder(tf.string, [None], "serialized")
        feature = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        y = tf.add(half * x, added, "y")
        parsed = half * feature["x"] + added
        labels = tf.fill(tf.shape(parsed), "sum")
        session.run(v1.global_variables_initializer())
        return _save(
            session,
            path,
            {
                "serving_default": _signature("predict", {"x": x}, {"y": y}),
                "two_outputs": _signature("predict", {"x": x}, {"half": half * x, "y": y}),
                "total": _signature("predict", {"x": x}, {"sum": tf.reduce_sum(y)}),
                METHOD + "regress": _signature(
                    "regress", {"inputs": serialized}, {"outputs": parsed}
                ),
                METHOD + "classify": _signature(
                    "classify", {"inputs": serialized}, {"scores": parsed, "classes": labels}
                ),
            },
        )


def slow(path: Path, rounds: int = 100) -> str:
    """Returns its input after so many multiplications, of some milliseconds each."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        matrix = tf.ones([512, 512]) * tf.reduce_sum(x)
        _, product = tf.while_loop(
            lambda i, _: i < rounds, lambda i, m: (i + 1, tf.matmul(m, m) / 512), (0, matrix)
        )
        y = x + 0 * product[0, 0]
        return _save(session, path, {"serving_default": _signature("predict", {"x": x}, {"y": y})})


def echo(path: Path) -> str:
    """Returns what it gets, of each type; `image_bytes` also under a name that ends so."""
    with tf.Graph().as_default(), v1.Session() as session:
        types = [
            *(tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64),
            *(tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.bool, tf.string),
        ]
        inputs = {each.name: v1.placeholder(each, [None], f"in_{each.name}") for each in types}
        outputs = {name: tf.identity(tensor) for name, tensor in inputs.items()}
        outputs["image_bytes"] = tf.identity(inputs["string"])
        tags = v1.sparse_placeholder(tf.string, [None, None], "tags")
        half = v1.placeholder(tf.float16, [None], "half")
        return _save(
            session,
            path,
            {
                "serving_default": _signature("predict", inputs, outputs),
                "sparse": _signature(
                    "predict", {"tags": tags}, {"dense": tf.sparse.to_dense(tags, "-")}
                ),
                "unsupported": _signature("predict", {"half": half}, {"half": half + 1}),
            },
        )


def _signature(method, inputs, outputs):
    info = v1.saved_model.utils.build_tensor_info
    return v1.saved_model.signature_def_utils.build_signature_def(
        {name: info(tensor) for name, tensor in inputs.items()},
        {name: info(tensor) for name, tensor in outputs.items()},
        METHOD + method,
    )


def _save(session, path, signatures) -> str:
    builder = v1.saved_model.Builder(str(path))
    builder.add_meta_graph_and_variables(session, ["serve"], signatures)
    builder.save()
    return str(path)
