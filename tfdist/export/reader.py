"""Finds where the reader of a training graph ends and the model begins.

A training graph reads its own input: from an iterator of tf.data, or from queues and readers. A
model that serves gets its input from requests, so the graph is cut at the last outputs of the
reader. `origin` follows such an output back to the parser of `tf.train.Example`, which gives it a
name and a type in the files.

This works on a GraphDef alone: without a session, a checkpoint or a device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

_ITERATORS = ("IteratorGetNext", "IteratorGetNextSync", "OptionalGetValue")
_QUEUES = tuple(f"QueueDequeue{many}{v2}" for many in ("", "Many", "UpTo") for v2 in ("", "V2"))
_ENQUEUES = tuple(f"QueueEnqueue{many}{v2}" for many in ("", "Many") for v2 in ("", "V2"))
_FILES = tuple(f"Reader{read}{v2}" for read in ("Read", "ReadUpTo") for v2 in ("", "V2"))
_PARSERS = ("ParseExample", "ParseExampleV2", "ParseSingleExample")
# Operations that hand on their input.
_SAME = ("Identity", "StopGradient", "EnsureShape", "Snapshot")
_BRANCHES = ("If", "StatelessIf")
# A SparseTensor goes through an iterator or a queue as one tensor.
_STORES_SPARSE = (
    *("SerializeSparse", "SerializeManySparse"),
    *("AddSparseToTensorsMap", "AddManySparseToTensorsMap"),
)
_RESTORES_SPARSE = ("DeserializeSparse", "DeserializeManySparse", "TakeManySparseFromTensorsMap")
# On its way, that one tensor may get another shape.
_RESHAPES = ("ExpandDims", "Squeeze")
# Datasets whose elements have the components of those of their first input.
_KEEPS_COMPONENTS = frozenset(
    (
        *("Batch", "PaddedBatch", "ParallelBatch", "Rebatch", "Unbatch", "Shuffle", "Repeat"),
        *("ShuffleAndRepeat", "Take", "Skip", "Cache", "Shard", "Filter", "Options", "Model"),
        *("Prefetch", "Optimize", "AssertCardinality", "MaxIntraOpParallelism"),
        "PrivateThreadPool",
    )
)
_MAPS = frozenset(("Map", "ParallelMap", "MapAndBatch"))
_FLAT_MAPS = frozenset(("FlatMap", "Interleave", "ParallelInterleave"))

READER_OPS = frozenset((*_ITERATORS, *_QUEUES, *_FILES, *_PARSERS, *_RESTORES_SPARSE, "Unstage"))
"""Operations whose outputs the reader makes."""

_INDICES, _VALUES, _SHAPE, _DENSE = 0, 1, 2, 3
_SPARSE = 4  # the whole SparseTensor as one tensor
_OUTPUTS = {
    "sparse_indices": _INDICES,
    "sparse_values": _VALUES,
    "sparse_shapes": _SHAPE,
    "dense_values": _DENSE,
}


class Tensor(NamedTuple):
    """An output of a node.

    Attributes:
        node: its name.
        output: in a function the name of the output, else "".
        place: in a graph that of the output; in a function that within the output of that name.
    """

    node: str
    output: str
    place: int

    @classmethod
    def parse(cls, text: str) -> Tensor:
        """The tensor that an input of a node is, or that a name such as "score:0" means."""
        node, *rest = text.split(":")
        return cls(node, rest[0] if len(rest) == 2 else "", int(rest[-1]) if rest else 0)

    def __str__(self) -> str:
        return f"{self.node}:{self.place}"


class Origin(NamedTuple):
    """What a parser makes of a key.

    Attributes:
        key: in the `tf.train.Example`.
        parsed: how it is parsed: a `tf.io.FixedLenFeature` or another such object.
        part: of a SparseTensor 0, 1 and 2 for its indices, values and dense shape; else 3.
    """

    key: str
    parsed: Any
    part: int

    @property
    def is_sparse(self) -> bool:
        """Whether it is a part of a SparseTensor."""
        return self.part != _DENSE


def boundary(graph_def: Any, outputs: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """The tensors of the reader and the placeholders that the outputs are computed from.

    Args:
        graph_def: the graph.
        outputs: names of tensors.
        known: names of tensors that are given, however they are computed.

    Raises:
        KeyError: the graph has no such node.
    """
    nodes = {node.name: node for node in graph_def.node}
    given = {Tensor.parse(text) for text in known}
    found, seen, left = [], set(given), [Tensor.parse(output) for output in outputs]
    while left:
        tensor = left.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        node = nodes[tensor.node]
        if node.op in READER_OPS or node.op in ("Placeholder", "PlaceholderV2"):
            found.append(tensor)
        else:
            left += _inputs(node)
    return [str(tensor) for tensor in sorted(found)]


def origin(graph_def: Any, tensor: str) -> Origin | None:
    """What a tensor of the reader has been parsed from; None if that is not known.

    It is known only if the way from the parser to the tensor changes nothing: a request with the
    value of the key then means the same as a record with that value.
    """
    nodes = {node.name: node for node in graph_def.node}
    found = _origin(_Body(graph_def, nodes), Tensor.parse(tensor))
    return None if found is None or found.part == _SPARSE else found


def detached(graph_def: Any) -> Any:
    """A copy of the graph that is bound to no device and does not wait for its reader.

    An operation that uses a value of the reader still has it as input.
    """
    copy = tf.compat.v1.GraphDef()
    copy.CopyFrom(graph_def)
    waits = {f"^{node.name}" for node in copy.node if node.op in READER_OPS}
    for node in copy.node:
        kept = [text for text in node.input if text not in waits]
        del node.input[:]
        node.input.extend(kept)
    for node in (*copy.node, *(each for body in copy.library.function for each in body.node_def)):
        node.device = ""
        node.attr.pop("_class", None)  # colocated with, perhaps, what is cut away
    return copy


@dataclass(frozen=True)
class _Body:
    """The nodes of a graph, or of a function in it."""

    graph_def: Any
    nodes: dict[str, Any]
    # Of a function, what its arguments are; the second takes the place of one.
    arguments: Sequence[str] = ()
    argument: Callable[[int], Origin | None] = lambda place: None

    def of_function(
        self, name: str, argument: Callable[[int], Origin | None]
    ) -> tuple[_Body, list[Tensor]]:
        """The nodes of a function, and what it returns."""
        functions = self.graph_def.library.function
        [function] = (each for each in functions if each.signature.name == name)
        nodes = {node.name: node for node in function.node_def}
        arguments = [argument.name for argument in function.signature.input_arg]
        returned = [
            Tensor.parse(function.ret[argument.name]) for argument in function.signature.output_arg
        ]
        return _Body(self.graph_def, nodes, arguments, argument), returned

    def unchanged(self, tensor: Tensor) -> Tensor:
        """The tensor that this one has its value from."""
        while (node := self.nodes.get(tensor.node)) is not None and node.op in _SAME:
            tensor = _inputs(node)[0]
        return tensor

    def constant(self, tensor: Tensor) -> Any:
        """The value of a constant, an array.

        Raises:
            _NotKnown: it is none.
        """
        node = self.nodes.get(self.unchanged(tensor).node)
        if node is None or node.op != "Const":
            raise _NotKnown
        return tf.make_ndarray(node.attr["value"].tensor)


class _NotKnown(Exception):
    """The parser computes its keys or defaults."""


def _inputs(node: Any) -> list[Tensor]:
    """The inputs of a node that are tensors."""
    return [Tensor.parse(text) for text in node.input if not text.startswith("^")]


def _origin(body: _Body, tensor: Tensor) -> Origin | None:
    tensor = body.unchanged(tensor)
    if tensor.node in body.arguments:
        return body.argument(body.arguments.index(tensor.node))
    node = body.nodes.get(tensor.node)
    if node is None:
        return None
    if node.op in _PARSERS:
        return _parsed(body, node, tensor)
    inputs = _inputs(node)
    if node.op in _BRANCHES:

        def argument(place: int) -> Origin | None:
            return _origin(body, inputs[1 + place])

        return _agreed(
            _returned(body, node, branch, tensor.place, argument)
            for branch in ("then_branch", "else_branch")
        )
    if node.op == "ConcatV2":
        return _filled_up(body, inputs)
    if node.op in _RESTORES_SPARSE:
        stored = _origin(body, inputs[0])
        is_whole = stored is not None and stored.part == _SPARSE
        return stored._replace(part=tensor.place) if stored is not None and is_whole else None
    if node.op in _STORES_SPARSE:
        values = _origin(body, inputs[1])
        return values._replace(part=_SPARSE) if values is not None else None
    if node.op in _RESHAPES:
        whole = _origin(body, inputs[0])
        return whole if whole is not None and whole.part == _SPARSE else None
    if node.op in _QUEUES:
        return _queued(body, inputs[0], tensor.place)
    if node.op in _ITERATORS:
        return _iterated(body, inputs[0], tensor.place)
    return None


def _returned(
    body: _Body, node: Any, function: str, place: int, argument: Callable[[int], Origin | None]
) -> Origin | None:
    """What a function that the node calls returns at that place."""
    inside, returned = body.of_function(node.attr[function].func.name, argument)
    return _origin(inside, returned[place]) if place < len(returned) else None


def _filled_up(body: _Body, inputs: Sequence[Tensor]) -> Origin | None:
    """Rows and what a last batch is filled up with."""
    *parts, axis = inputs
    try:
        if body.constant(axis) != 0:
            return None
    except _NotKnown:
        return None
    found = [_origin(body, each) for each in parts]
    return _agreed(each for each in found if each is not None)


# --- parsers


def _parsed(body: _Body, node: Any, tensor: Tensor) -> Origin | None:
    try:
        sparse, dense = _keys(body, node)
    except _NotKnown:
        return None
    places = [(key, part) for part in (_INDICES, _VALUES, _SHAPE) for key in sparse]
    places += [(key, _DENSE) for key in dense]
    if tensor.output:  # in a function
        part = _OUTPUTS.get(tensor.output)
        places = [place for place in places if place[1] == part]
    if tensor.place >= len(places):
        return None  # it is ragged
    key, part = places[tensor.place]
    return Origin(key, (dense if part == _DENSE else sparse)[key], part)


def _keys(body: _Body, node: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the sparse and the dense keys of a parser are parsed, in the order of its outputs."""
    inputs, attributes = _inputs(node), node.attr
    if node.op == "ParseSingleExample":
        sparse, dense = (
            [key.decode() for key in attributes[f"{kind}_keys"].list.s]
            for kind in ("sparse", "dense")
        )
        defaults = inputs[1:]
    elif node.op == "ParseExample":
        num_sparse, num_dense = attributes["Nsparse"].i, attributes["Ndense"].i
        keys = [
            body.constant(each).item().decode() for each in inputs[2 : 2 + num_sparse + num_dense]
        ]
        sparse, dense = keys[:num_sparse], keys[num_sparse:]
        defaults = inputs[2 + num_sparse + num_dense :]
    else:
        sparse, dense = (
            [key.decode() for key in body.constant(each).tolist()] for each in inputs[2:4]
        )
        defaults = inputs[5:]
    shapes = [_shape(shape) for shape in attributes["dense_shapes"].list.shape]
    types = [tf.as_dtype(each) for each in attributes["Tdense"].list.type]
    values = [body.constant(each) for each in defaults]
    return (
        {
            key: tf.io.VarLenFeature(tf.as_dtype(each))
            for key, each in zip(sparse, attributes["sparse_types"].list.type, strict=True)
        },
        {key: _dense(*how) for key, *how in zip(dense, shapes, types, values, strict=True)},
    )


def _dense(shape: list[int | None], dtype: tf.DType, default: Any) -> Any:
    """How a dense key is parsed; `default` is empty if there is none."""
    if shape and shape[0] is None:
        value = default.item() if default.size else None
        return tf.io.FixedLenSequenceFeature(
            shape[1:], dtype, allow_missing=True, default_value=value
        )
    has_default = default.size or 0 in shape
    return tf.io.FixedLenFeature(shape, dtype, default if has_default else None)


def _shape(shape: Any) -> list[int | None]:
    return [None if size.size < 0 else size.size for size in shape.dim]


# --- queues and datasets


def _queued(body: _Body, queue: Tensor, index: int) -> Origin | None:
    """What is at that place of the elements of a queue."""
    queue = body.unchanged(queue)
    filled = [
        _inputs(node)
        for node in body.nodes.values()
        if node.op in _ENQUEUES and body.unchanged(_inputs(node)[0]) == queue
    ]
    return _agreed(_origin(body, inputs[1 + index]) for inputs in filled)


def _iterated(body: _Body, iterator: Tensor, index: int) -> Origin | None:
    """What is at that place of the elements of an iterator."""
    iterator = body.unchanged(iterator)
    node = body.nodes.get(iterator.node)
    if node is None:
        return None
    if node.op == "IteratorGetNextAsOptional":
        return _iterated(body, _inputs(node)[0], index)
    if node.op == "OneShotIterator":
        inside, [dataset] = body.of_function(node.attr["dataset_factory"].func.name, lambda _: None)
        return _element(inside, dataset, index)
    made = [_inputs(node) for node in body.nodes.values() if node.op == "MakeIterator"]
    return _agreed(
        _element(body, dataset, index)
        for dataset, target in made
        if body.unchanged(target) == iterator
    )


def _element(body: _Body, dataset: Tensor, index: int) -> Origin | None:
    """What is at that place of the elements of a dataset."""
    dataset = body.unchanged(dataset)
    node = body.nodes.get(dataset.node)
    if node is None:
        return None
    kind, inputs = _kind(node.op), _inputs(node)
    if kind in _KEEPS_COMPONENTS:
        return _element(body, inputs[0], index)
    if kind == "Concatenate":  # perhaps with empty batches that no parser has made
        parts = [_element(body, each, index) for each in inputs]
        return _agreed(each for each in parts if each is not None)
    if kind in _MAPS:
        return _returned(body, node, "f", index, lambda place: _element(body, inputs[0], place))
    if kind in _FLAT_MAPS:
        inside, [inner] = body.of_function(node.attr["f"].func.name, lambda _: None)
        return _element(inside, inner, index)
    return None


def _kind(op: str) -> str:
    """The kind of a dataset, such as "Batch" of "BatchDatasetV2"; "" if it is no dataset."""
    kind, dataset, version = op.partition("Dataset")
    is_one = dataset and (not version or version.lstrip("V").isdecimal())
    return kind if is_one else ""


def _agreed(found: Iterable[Origin | None]) -> Origin | None:
    """The origin, if all sources agree on it."""
    texts: dict[str, Origin | None] = {str(each): each for each in found}  # arrays have no hash
    return texts.popitem()[1] if len(texts) == 1 else None
