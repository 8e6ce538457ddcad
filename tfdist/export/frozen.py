"""Freezes an exported model: one GraphDef whose variables are constants, for a C++ program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError
from tfdist.export.cut import TABLE_OPS
from tfdist.export.feature import Feature, operation_name, parts_of
from tfdist.export.reader import detached
from tfdist.export.verify import ServedModel

_v1 = tf.compat.v1


def freeze(model: ServedModel, features: Sequence[Feature], path: Path) -> None:
    """Writes the frozen graph.

    Its placeholders have the names of the inputs and its last operations those of the outputs; a
    SparseTensor `ids` has the placeholders `ids/indices`, `ids/values` and `ids/dense_shape`.

    Raises:
        ConfigError: the model has a lookup table, which a GraphDef cannot initialize.
    """
    inputs, outputs = model.tensors()
    nodes = [text.partition(":")[0] for text in outputs.values()]
    graph_def = model.graph.as_graph_def()
    for node in _v1.graph_util.extract_sub_graph(graph_def, nodes).node:
        if node.op in TABLE_OPS:
            rule = "is a lookup table, which a frozen graph cannot initialize; serve the SavedModel"
            raise ConfigError("freeze", node.name, rule)
    constant = _v1.graph_util.convert_variables_to_constants(model.session, graph_def, nodes)
    with tf.Graph().as_default() as graph:
        replaced: dict[str, Any] = {}
        for each in features:
            parts = parts_of(each.placeholders())
            replaced.update(zip(inputs[each.name], parts, strict=True))
        names = [operation_name(name) for name in outputs]
        tensors = tf.import_graph_def(
            detached(constant), replaced, list(outputs.values()), name="frozen"
        )
        for name, tensor in zip(names, tensors, strict=True):
            tf.identity(tensor, name)
    frozen = _v1.graph_util.extract_sub_graph(graph.as_graph_def(), names)
    path.write_bytes(frozen.SerializeToString())
