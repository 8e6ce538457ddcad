"""Runs an exported model as a C++ server would, and compares it with what was trained.

It uses the loader of TensorFlow 1, whose graph is the one that C++ runs. TensorFlow 2 has a loader
of its own, which accepts models that C++ cannot load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.errors import ConfigError, reason_of
from tfdist.export.feature import parts_of
from tfdist.export.saved_model import SERVING_DEFAULT, new_session

_v1 = tf.compat.v1

Values = Mapping[str, Any]
Model = Callable[[Values], Values]
"""Computes arrays by the name of the output from arrays by the name of the input."""

BATCHES = (1, 3)
_TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
# What no model that serves has: the reader of a training, and the training itself.
_NOT_SERVED = re.compile(
    r"(Iterator|.*Dataset|Queue|.*Queue(V2)?|.*Reader|Reader|Unstage|Stage|MakeIterator)"
    r"|(Resource|Sparse|ResourceSparse)?Apply"
    r"|(Resource)?Scatter(Add|Sub|Update)"
)
_NODE = re.compile(r"\{\{node ([^}]+)\}\}")


class ServedModel:
    """A SavedModel as C++ loads it.

    Attributes:
        session: has it loaded.
        graph: what it runs.
        signatures: the names of its signatures.
    """

    def __init__(self, session: Any, signatures: Any) -> None:
        self.session, self.graph, self._signatures = session, session.graph, signatures
        self.signatures = sorted(name for name in signatures if not name.startswith("__"))

    def tensors(
        self, signature: str = SERVING_DEFAULT
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
        """The names of the tensors by the name of the input, and by that of the output."""
        about = self._signatures[signature]
        inputs = {name: _names(each) for name, each in about.inputs.items()}
        return inputs, {name: each.name for name, each in about.outputs.items()}

    def dtypes(self, signature: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The types by the name of the input, and by that of the output."""
        about = self._signatures[signature]
        return (
            {name: tf.dtypes.as_dtype(each.dtype) for name, each in about.inputs.items()},
            {name: tf.dtypes.as_dtype(each.dtype) for name, each in about.outputs.items()},
        )

    def run(self, values: Values, signature: str = SERVING_DEFAULT) -> dict[str, Any]:
        """Runs a signature: arrays by the name of the output, from those by that of the input."""
        inputs, outputs = self.tensors(signature)
        feed: dict[str, Any] = {}
        for name, value in values.items():
            feed.update(zip(inputs[name], parts_of(value), strict=True))
        computed: dict[str, Any] = self.session.run(outputs, feed)
        return computed


def _names(info: Any) -> tuple[str, ...]:
    if info.WhichOneof("encoding") == "coo_sparse":
        sparse = info.coo_sparse
        return (
            sparse.indices_tensor_name,
            sparse.values_tensor_name,
            sparse.dense_shape_tensor_name,
        )
    return (info.name,)


@contextmanager
def quiet() -> Iterator[None]:
    """Logs errors of TensorFlow only: it warns of the age of each function that loads in C++."""
    level = _v1.logging.get_verbosity()
    _v1.logging.set_verbosity(_v1.logging.ERROR)
    try:
        yield
    finally:
        _v1.logging.set_verbosity(level)


@contextmanager
def served(folder: str) -> Iterator[ServedModel]:
    """Loads a SavedModel as C++ does, and checks that nothing of the training is left in it.

    Raises:
        ConfigError: an operation of the training is left, or one that is bound to a device.
    """
    graph = tf.Graph()
    session = new_session(graph)
    try:
        with graph.as_default():
            loaded = _v1.saved_model.load(session, [_v1.saved_model.tag_constants.SERVING], folder)
        graph_def = loaded.graph_def
        bodies = (each for body in graph_def.library.function for each in body.node_def)
        for node in (*graph_def.node, *bodies):
            if _NOT_SERVED.match(node.op):
                rule = f"is left of the training: a {node.op}, which no request needs"
                raise ConfigError("source", node.name, rule)
            if "task" in node.device or "GPU" in node.device:
                raise ConfigError("source", node.name, f"is bound to the device {node.device}")
        yield ServedModel(session, loaded.signature_def)
    finally:
        session.close()


def compare(
    model: ServedModel,
    trained: Model,
    sample: Callable[[int], Values],
    trained_batch: int | None = None,
) -> None:
    """Compares a served model with the trained one at BATCHES.

    Args:
        model: the served model.
        trained: what was exported.
        sample: gives that many rows of each input; with more rows the first ones are the same.
        trained_batch: the only number of rows that the trained model takes, if there is one.

    Raises:
        ConfigError: the model does not run at that batch size, or computes something else.
    """
    for batch in BATCHES:
        computed = _run(model, sample(batch), batch, trained_batch)
        for name, value in computed.items():
            if np.ndim(value) and len(value) != batch:
                rule = f"the output {name} has {len(value)} rows; {_cause(trained_batch)}"
                raise ConfigError("batch size", batch, rule)
        expected = trained(sample(trained_batch or batch))
        rows = min(batch, trained_batch or batch)
        check_equal(_first(rows, computed), _first(rows, expected))


def _first(rows: int, values: Values) -> Values:
    return {name: value[:rows] if np.ndim(value) else value for name, value in values.items()}


def check_equal(computed: Values, expected: Values) -> None:
    """Raises ConfigError if an output is not, up to rounding, the expected one."""
    for name, value in computed.items():
        if not is_close(value, expected[name]):
            rule = f"is not what was trained: {value!r} instead of {expected[name]!r}"
            raise ConfigError("outputs", name, rule)


def is_close(value: Any, expected: Any) -> bool:
    """Whether two outputs are equal, up to rounding."""
    if np.shape(value) != np.shape(expected):
        return False
    if np.issubdtype(np.asarray(value).dtype, np.floating):
        return np.allclose(value, expected, equal_nan=True, **_TOLERANCE)
    return np.array_equal(value, expected)


def _run(model: ServedModel, values: Values, batch: int, trained_batch: int | None) -> Values:
    try:
        return model.run(values)
    except tf.errors.OpError as error:
        text = str(error.message)
        found = _NODE.search(text)
        node = f" at {found[1]}" if found else ""
        rule = f"the model does not run{node}: {reason_of(text)}; {_cause(trained_batch)}"
        raise ConfigError("batch size", batch, rule) from error


def _cause(trained_batch: int | None) -> str:
    if trained_batch is None:
        return "a batch size may be part of the graph; use tf.shape(x)[0]"
    where = f"in the training it is always {trained_batch}, and that number is a part of the graph"
    return f"{where}; use tf.shape(x)[0], or let the last batch be smaller"
