"""What an exported graph takes and returns."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError, did_you_mean, reason_of
from tfdist.export.feature import Feature, parsed_as
from tfdist.export.reader import Origin, Tensor, boundary, detached, origin

_NAME = re.compile(r"[^:^]+(:\d+)?")
_log = logging.getLogger(__name__)

# As `tf.compat.v1.sparse_placeholder` names its parts, and as tfdist does in a frozen graph.
_SPARSE_PARTS = (("indices", "values", "shape"), ("indices", "values", "dense_shape"))


@dataclass(frozen=True)
class Signature:
    """The tensors of a training graph that an exported model has as inputs and outputs.

    Attributes:
        features: the inputs.
        outputs: names of tensors by the name of the output.
        constants: arrays by the name of the tensor that each replaces.
        batch: the number of rows, if the graph takes only one; else None.
    """

    features: list[Feature]
    outputs: dict[str, str]
    constants: dict[str, Any]
    batch: int | None


def signature_of(
    meta_graph: Any,
    inputs: Mapping[str, Any] | None,
    outputs: Any,
    constants: Mapping[Any, Any] | None,
) -> Signature:
    """The signature of a training graph; the inputs that are not named are found.

    Args:
        meta_graph: of the training.
        inputs, outputs, constants: as for `export_model`.

    Raises:
        ConfigError: the graph has no such tensor, a constant cannot replace it, or an input has no
            batch as first dimension.
    """
    graph_def = detached(meta_graph.graph_def)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    named_outputs = _named_tensors("outputs", outputs)
    named_inputs = _named_tensors("inputs", inputs) if inputs else {}
    tensors = {
        name: (each,) if isinstance(each, str) else each for name, each in named_inputs.items()
    }
    _check_names("outputs", graph, named_outputs.values())
    _check_names("inputs", graph, (text for parts in tensors.values() for text in parts))
    values = _constants(graph, constants or {})
    known = {*values, *(text for parts in tensors.values() for text in parts)}
    found = boundary(graph_def, list(named_outputs.values()), known)
    tensors.update(_named_by_origin(graph_def, found, set(tensors)))
    if not tensors:
        raise ConfigError("outputs", list(named_outputs), "must depend on an input")
    features = [
        _feature(graph, name, parts, origin(graph_def, next(filter(None, parts))))
        for name, parts in sorted(tensors.items())
    ]
    return Signature(features, named_outputs, values, _batch(graph, features))


def _constants(graph: tf.Graph, constants: Mapping[Any, Any]) -> dict[str, Any]:
    """The constants as arrays of the right type."""
    names = {_tensor_name("constants", tensor): value for tensor, value in constants.items()}
    _check_names("constants", graph, names)
    arrays = {}
    for name, value in names.items():
        tensor = graph.get_tensor_by_name(name)
        try:
            arrays[name] = tf.make_ndarray(tf.make_tensor_proto(value, tensor.dtype))
        except (TypeError, ValueError) as error:
            rule = f"must be {tensor.dtype.name} for {name} ({reason_of(str(error))})"
            raise ConfigError("constants", value, rule) from error
    return arrays


def _batch(graph: tf.Graph, features: Sequence[Feature]) -> int | None:
    """The number of rows that the dense tensors have in the training, if it is fixed."""
    for each in features:
        shape = None if each.is_sparse else graph.get_tensor_by_name(each.tensors[0]).shape
        if shape is not None and shape.rank is not None and shape[0] is not None:
            return int(shape[0])
    return None


def _check_names(field: str, graph: tf.Graph, names: Iterable[str]) -> None:
    for name in names:
        try:
            graph.get_tensor_by_name(name)
        except (KeyError, ValueError):
            close = did_you_mean(
                name, (f"{op.name}:0" for op in graph.get_operations() if op.outputs)
            )
            raise ConfigError(field, name, f"must be a tensor of the graph{close}") from None


def _named_by_origin(
    graph_def: Any, found: Sequence[str], taken: Collection[str]
) -> dict[str, tuple[str | None, ...]]:
    """Names for the tensors at the reader's end, and which of them are one SparseTensor."""
    named: dict[str, list[str | None]] = {}
    unknown = []
    for text in found:
        source = origin(graph_def, text)
        if source is None or source.key in taken:
            unknown.append(text)
        elif source.is_sparse:
            named.setdefault(source.key, [None, None, None])[source.part] = text
        else:
            named[source.key] = [text]
    placeholders = {node.name for node in graph_def.node if node.op.startswith("Placeholder")}
    for text in unknown:
        node = Tensor.parse(text).node
        name, _, part = node.rpartition("/")
        several = [[f"{name}/{each}" for each in names] for names in _SPARSE_PARTS if part in names]
        whole = [parts for parts in several if placeholders.issuperset(parts)]
        if whole:
            named[name] = [f"{each}:0" for each in whole[0]]
        elif node in placeholders:
            named[node] = [text]
        else:
            name = text.removesuffix(":0").replace(":", "_")
            named[name] = [text]
            _log.warning(
                "input %r: the reader computes it from its records, and does not name it; name it "
                "with inputs={'NAME': %r}",
                name,
                text,
            )
    return {name: tuple(parts) for name, parts in named.items()}


def _feature(
    graph: tf.Graph, name: str, tensors: tuple[str | None, ...], source: Origin | None
) -> Feature:
    parts = [graph.get_tensor_by_name(text) for text in tensors if text is not None]
    if is_sparse := len(tensors) == 3:
        dtype, shape = _sparse_type(graph, tensors, source)
    else:
        [tensor] = parts
        dtype, shape = tensor.dtype, tensor.shape
        if shape.rank == 0:
            rule = (
                "must have the batch as first dimension, or a fixed value as one of the constants"
            )
            raise ConfigError("inputs", tensor.name, rule)
        if shape.rank is not None:
            shape = tf.TensorShape([None, *shape[1:]])
    if source is not None and source.key == name and _fits(source.parsed, shape):
        parsed = source.parsed
    else:
        parsed = parsed_as(dtype, shape, is_sparse=is_sparse) if shape.rank is not None else None
    return Feature(name, dtype, shape, is_sparse, tensors, parsed)


def _fits(parsed: Any, shape: tf.TensorShape) -> bool:
    """Whether what is parsed may have that shape; the reader may have padded it."""
    return not isinstance(parsed, tf.io.FixedLenFeature) or shape[1:].is_compatible_with(
        parsed.shape
    )


def _sparse_type(
    graph: tf.Graph, tensors: Sequence[str | None], source: Origin | None
) -> tuple[tf.DType, tf.TensorShape]:
    """Type and shape of a SparseTensor, of which the graph may use some parts only."""
    indices, values, dense_shape = (
        None if text is None else graph.get_tensor_by_name(text) for text in tensors
    )
    dtype = tf.int64
    if values is not None:
        dtype = values.dtype
    elif source is not None:
        dtype = source.parsed.dtype
    rank = None
    if indices is not None and indices.shape.rank == 2:
        rank = indices.shape[1]
    elif dense_shape is not None and dense_shape.shape.rank == 1:
        rank = dense_shape.shape[0]
    return dtype, tf.TensorShape([None] * (2 if rank is None else rank))


def _named_tensors(field: str, tensors: Any) -> dict[str, Any]:
    """Names of tensors, by the name of the input or output.

    Args:
        field: the parameter.
        tensors: a mapping to tensors or their names, or a list of these; in a list "score" and
            "score:0" have the name "score".
    """
    if isinstance(tensors, (str, bytes)) or not tensors:
        rule = "must be a list of tensors, or a mapping of names to them"
        raise ConfigError(field, tensors, rule)
    if not isinstance(tensors, Mapping):
        texts = [_tensor_name(field, each) for each in tensors]
        return {
            text.removesuffix(":0").rpartition("/")[2].replace(":", "_"): text for text in texts
        }
    named = {}
    for name, each in tensors.items():
        parts = each if isinstance(each, (tuple, list)) else (each,)
        if len(parts) not in (1, 3) or (len(parts) == 3 and field != "inputs"):
            rule = "must be one tensor, or as an input three: indices, values and dense shape"
            raise ConfigError(field, each, rule)
        texts = [_tensor_name(field, part) for part in parts]
        named[name] = tuple(texts) if len(texts) == 3 else texts[0]
    return named


def _tensor_name(field: str, tensor: Any) -> str:
    name = tensor if isinstance(tensor, str) else getattr(tensor, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(field, tensor, "must be a tensor of the graph, or its name")
    return str(Tensor.parse(name))
