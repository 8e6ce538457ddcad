"""The inputs of an exported model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

EXAMPLES = "examples"
"""The input that takes serialized `tf.train.Example`s, and the signature that has it."""

# A `tf.train.Example` has values of these types; others are made from one of them.
_TYPES = {
    **dict.fromkeys((tf.float32, tf.float16, tf.bfloat16, tf.float64), tf.float32),
    **dict.fromkeys((tf.int64, tf.int32, tf.int16, tf.int8, tf.uint16, tf.uint8), tf.int64),
    tf.bool: tf.int64,
    tf.string: tf.string,
}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]|^[^A-Za-z0-9.]")


@dataclass(frozen=True)
class Feature:
    """An input of the model.

    Attributes:
        name: the name of the input in a request, and its key in a `tf.train.Example`.
        dtype: of its values.
        shape: of the tensor, or of what a SparseTensor stands for; the batch comes first.
        is_sparse: whether it is a SparseTensor.
        tensors: where the training graph is cut: one tensor, or the indices, values and dense
            shape of a SparseTensor; None for one that the model does not use. Of a function empty.
        parsed: how it is parsed from a `tf.train.Example`: a `tf.io.FixedLenFeature`, for example;
            None if it cannot be.
    """

    name: str
    dtype: tf.DType
    shape: tf.TensorShape
    is_sparse: bool = False
    tensors: tuple[str | None, ...] = ()
    parsed: Any = None

    @property
    def spec(self) -> Any:
        """As TensorFlow describes it."""
        kind = tf.SparseTensorSpec if self.is_sparse else tf.TensorSpec
        return kind(self.shape, self.dtype)

    @property
    def parts(self) -> list[tf.TensorSpec]:
        """The tensors that carry it: one, or the indices, values and dense shape."""
        name = operation_name(self.name)
        if not self.is_sparse:
            return [tf.TensorSpec(self.shape, self.dtype, name)]
        rank = self.shape.rank
        return [
            tf.TensorSpec([None, rank], tf.int64, f"{name}/indices"),
            tf.TensorSpec([None], self.dtype, f"{name}/values"),
            tf.TensorSpec([rank], tf.int64, f"{name}/dense_shape"),
        ]

    def joined(self, parts: Sequence[Any]) -> Any:
        """The tensor or SparseTensor that the parts are."""
        return tf.SparseTensor(*parts) if self.is_sparse else parts[0]

    def placeholders(self, default: Any = None) -> Any:
        """A tensor or SparseTensor of placeholders; `default` is what they are if not fed."""
        defaults = [None] * len(self.parts) if default is None else parts_of(default)
        return self.joined([_placeholder(*each) for each in zip(self.parts, defaults, strict=True)])


def with_checked_ids(values: Mapping[str, Any], num_ids: Mapping[str, int]) -> dict[str, Any]:
    """The features, of which a run fails with InvalidArgumentError if it gets a wrong id.

    A table that is partitioned over several ps looks up a wrong row for some of these.

    Args:
        values: the features by name.
        num_ids: by the name of the feature, the number that its ids are less than.
    """
    checked = dict(values)
    for name, number in num_ids.items():
        ids = values[name].values if isinstance(values[name], tf.SparseTensor) else values[name]
        is_right = tf.reduce_all((ids >= 0) & (ids < number))
        message = f"{name}: ids must be at least 0 and less than {number}"
        right = tf.raw_ops.Assert(condition=is_right, data=[message, ids], summarize=3)
        with tf.control_dependencies([right]):
            ids = tf.identity(ids)
        if isinstance(values[name], tf.SparseTensor):
            checked[name] = values[name].with_values(ids)
        else:
            checked[name] = ids
    return checked


def operation_name(name: str) -> str:
    """The name of an operation for an input or output of that name."""
    return _NOT_IN_NAMES.sub("_", name)


def _placeholder(spec: tf.TensorSpec, default: Any) -> Any:
    if default is None:
        return tf.compat.v1.placeholder(spec.dtype, spec.shape, spec.name)
    return tf.compat.v1.placeholder_with_default(default, spec.shape, spec.name)


def parts_of(value: Any) -> tuple[Any, ...]:
    """The tensors of a tensor or SparseTensor."""
    if isinstance(value, (tf.SparseTensor, tf.compat.v1.SparseTensorValue)):
        return value.indices, value.values, value.dense_shape
    return (value,)


def parsed_as(dtype: tf.DType, shape: tf.TensorShape, *, is_sparse: bool) -> Any:
    """How a feature of that type and shape is parsed from a `tf.train.Example`; None if not."""
    stored = _TYPES.get(dtype)
    if stored is None or (is_sparse and shape.rank != 2):
        return None
    if is_sparse:
        return tf.io.VarLenFeature(stored)
    sizes = shape[1:].as_list()
    if sizes and sizes[0] is None and None not in sizes[1:]:
        return tf.io.FixedLenSequenceFeature(sizes[1:], stored, allow_missing=True)
    return None if None in sizes else tf.io.FixedLenFeature(sizes, stored)


def parse(serialized: Any, features: Iterable[Feature]) -> dict[str, Any]:
    """The features by name, parsed from a tensor of serialized `tf.train.Example`s."""
    features = list(features)
    parsed = tf.io.parse_example(serialized, {each.name: each.parsed for each in features})
    return {each.name: tf.cast(parsed[each.name], each.dtype) for each in features}
