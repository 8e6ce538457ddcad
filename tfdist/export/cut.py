"""Cuts a training graph at its reader: what is left computes the outputs from placeholders.

Works on a MetaGraphDef, and returns one with the same variables, tables and assets as far as the
outputs need them. Nothing is left of the reader and of the training, and no device.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from tfdist.errors import ConfigError
from tfdist.export.feature import EXAMPLES, operation_name, parse, parts_of, with_checked_ids
from tfdist.export.reader import READER_OPS, Tensor, detached
from tfdist.export.signature import Signature

VARIABLE_OPS = frozenset(("VarHandleOp", "VariableV2", "Variable"))
TABLE_OPS = frozenset(("HashTableV2", "HashTable"))
# They hold what the training has inserted, and no collection names what would restore them.
_MUTABLE_TABLE_OPS = frozenset(
    f"Mutable{kind}{version}"
    for kind in ("HashTable", "DenseHashTable", "HashTableOfTensors")
    for version in ("", "V2")
)
_Keys = tf.compat.v1.GraphKeys
_VARIABLES = (_Keys.GLOBAL_VARIABLES, _Keys.TRAINABLE_VARIABLES, _Keys.MODEL_VARIABLES)
# The names that TensorFlow gives to sizes and shapes, and to the shape that an operation takes.
_IS_SIZE = re.compile(r"(size|shape)(_\d+)?$", re.IGNORECASE)
_NO_INITIALIZER = "restored_not_initialized"


@dataclass(frozen=True)
class CutGraph:
    """A graph that computes the outputs from placeholders.

    Attributes:
        meta_graph: a MetaGraphDef: the graph, and what its variables, tables and assets are.
        inputs: the names of the tensors of each feature, by its name; three for a SparseTensor.
        examples: the name of the tensor for serialized `tf.train.Example`s; None if there is none.
        outputs: the names of the tensors by the name of the output.
    """

    meta_graph: Any
    inputs: dict[str, tuple[str, ...]]
    examples: str | None
    outputs: dict[str, str]


def cut(
    meta_graph: Any, signature: Signature, num_ids: Mapping[str, int], *, parses: bool
) -> CutGraph:
    """Cuts a training graph where the features of the signature are.

    Args:
        meta_graph: of the training.
        signature: what the model takes and returns.
        num_ids: of some features, the number that their ids are less than.
        parses: whether the features can also be parsed from serialized `tf.train.Example`s; else
            they have to be fed.

    Raises:
        ConfigError: the outputs need more than the features and the constants.
    """
    features = signature.features
    graph_def = detached(meta_graph.graph_def)
    examples = None
    with tf.Graph().as_default() as graph:
        for node in graph_def.node:
            graph.unique_name(node.name)  # what is added gets another name
        defaults: dict[str, Any] = {}
        if parses:
            serialized = tf.compat.v1.placeholder(tf.string, [None], EXAMPLES)
            defaults, examples = parse(serialized, features), serialized.name
        placeholders = {each.name: each.placeholders(defaults.get(each.name)) for each in features}
        replaced = {name: tf.constant(value) for name, value in signature.constants.items()}
        checked = with_checked_ids(placeholders, num_ids)
        for each in features:
            parts = zip(each.tensors, parts_of(checked[each.name]), strict=True)
            replaced.update({name: part for name, part in parts if name is not None})
        replaced.update(_sizes(graph_def, signature, placeholders))
        tf.import_graph_def(graph_def, replaced, name="")
        computed = {}
        for name, text in signature.outputs.items():
            tensor = replaced.get(text, graph.get_tensor_by_name(text))
            is_named = tensor.name == f"{name}:0"
            computed[name] = (
                tensor if is_named else tf.identity(tensor, operation_name(name))
            ).name
    inputs = {
        name: tuple(part.name for part in parts_of(value)) for name, value in placeholders.items()
    }
    added = [text for parts in inputs.values() for text in parts] + ([examples] if examples else [])
    kept = needed(graph.as_graph_def(), meta_graph, [*computed.values(), *added])
    _check(kept.graph_def, added, {node.name for node in graph_def.node})
    return CutGraph(kept, inputs, examples, computed)


def _sizes(graph_def: Any, signature: Signature, placeholders: dict[str, Any]) -> dict[str, Any]:
    """What replaces the batch size of the training, by the name of a constant.

    TensorFlow makes a constant of `tf.shape(x)` and `tf.size(x)` if the reader's batches have a
    fixed size. If such a constant means something else, the check of the exported model fails.
    """
    replaced: dict[str, Any] = {}
    if (batch := signature.batch) is None:
        return replaced
    dense = next(each for each in signature.features if not each.is_sparse)
    size = tf.shape(placeholders[dense.name], out_type=tf.int64)[0]
    for node in graph_def.node:
        if node.op != "Const" or not _IS_SIZE.search(node.name):
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        if value.dtype.kind != "i" or value.ndim > 1 or not value.size or value.flat[0] != batch:
            continue
        dynamic = tf.cast(size, value.dtype)
        if value.ndim == 1:
            dynamic = tf.concat([[dynamic], value[1:]], 0)
        replaced[f"{node.name}:0"] = dynamic
    return replaced


def needed(graph_def: Any, meta_graph: Any, targets: Sequence[str]) -> Any:
    """A MetaGraphDef of what the targets need: operations, variables, tables and assets.

    Args:
        graph_def: the graph.
        meta_graph: the one whose variables, tables and assets it has.
        targets: names of tensors.

    Raises:
        ConfigError: the training does not save one of the variables, or it fills a table.
    """
    kept = _extract(graph_def, targets)
    variables = _variables(meta_graph, kept)
    tables = _table_initializers(graph_def, meta_graph, kept)
    targets = [*targets, *tables, *(each.snapshot_name for each in variables)]
    extracted = meta_graph_pb2.MetaGraphDef(graph_def=_extract(graph_def, targets))
    names = {node.name for node in extracted.graph_def.node}
    # A model is restored. Its initial values may be as large as it is, or come from the reader.
    extracted.graph_def.node.add(name=_NO_INITIALIZER, op="NoOp")
    collections = extracted.collection_def
    for variable in variables:
        variable.initializer_name, variable.initial_value_name = _NO_INITIALIZER, ""
        collections[_Keys.GLOBAL_VARIABLES].bytes_list.value.append(variable.SerializeToString())
    collections[_Keys.TABLE_INITIALIZERS].node_list.value.extend(tables)
    assets = meta_graph.collection_def[_Keys.ASSET_FILEPATHS].node_list.value
    collections[_Keys.ASSET_FILEPATHS].node_list.value.extend(
        text for text in assets if Tensor.parse(text).node in names
    )
    return extracted


def _extract(graph_def: Any, targets: Sequence[str]) -> Any:
    """The operations that the targets need, and the functions that these call."""
    nodes = [Tensor.parse(text).node for text in targets]
    extracted = tf.compat.v1.graph_util.extract_sub_graph(graph_def, nodes)
    functions = {each.signature.name: each for each in extracted.library.function}
    called: dict[str, Any] = {}
    left = _called_by(extracted.node)
    while left:
        name = left.pop()
        if name in functions and name not in called:
            called[name] = functions[name]
            left += _called_by(functions[name].node_def)
    library = [called[name] for name in sorted(called)]
    extracted.library.Clear()
    extracted.library.function.extend(library)
    return extracted


def _called_by(nodes: Sequence[Any]) -> list[str]:
    """The names of the functions that the operations call, and of some that are none."""
    attributes = [value for node in nodes for value in node.attr.values()]
    functions = [each for value in attributes for each in (value.func, *value.list.func)]
    return [*(node.op for node in nodes), *(each.name for each in functions)]


def _variables(meta_graph: Any, graph_def: Any) -> list[Any]:
    """The VariableDef of each variable in the graph."""
    needed = {node.name for node in graph_def.node if node.op in VARIABLE_OPS}
    found = {}
    for collection in _VARIABLES:
        for serialized in meta_graph.collection_def[collection].bytes_list.value:
            variable = variable_pb2.VariableDef.FromString(serialized)
            found[Tensor.parse(variable.variable_name).node] = variable
    missing = sorted(needed - set(found))
    if missing:
        rule = "is needed, but is in no collection of variables that are saved"
        raise ConfigError("variable", missing[0], rule)
    return [found[name] for name in sorted(needed)]


def _table_initializers(graph_def: Any, meta_graph: Any, kept: Any) -> list[str]:
    """The operations that initialize the tables in `kept`."""
    for node in kept.node:
        if node.op in _MUTABLE_TABLE_OPS:
            rule = f"is a {node.op}, which the training fills; export from a graph with a table of"
            raise ConfigError("table", node.name, f"{rule} fixed contents")
    tables = {node.name for node in kept.node if node.op in TABLE_OPS}
    nodes = {node.name: node for node in graph_def.node}
    return [
        name
        for name in meta_graph.collection_def[_Keys.TABLE_INITIALIZERS].node_list.value
        if any(Tensor.parse(text).node in tables for text in nodes[name].input)
    ]


def _check(graph_def: Any, added: Collection[str], trained: Collection[str]) -> None:
    """Raises ConfigError if an operation of the training is left that has to be fed."""
    for node in graph_def.node:
        if node.name in trained and node.op in READER_OPS:
            rule = "reads the input of the training, and the outputs need it; name the tensors that"
            raise ConfigError("inputs", f"{node.name}:0", f"{rule} requests give instead")
        if node.op in ("Placeholder", "PlaceholderV2") and f"{node.name}:0" not in added:
            rule = "is a placeholder that the outputs need; name it in `inputs` or `constants`"
            raise ConfigError("inputs", f"{node.name}:0", rule)
