"""Rows to check an exported model with: of real records, or made up."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.errors import ConfigError, checked_several, reason_of
from tfdist.export.feature import Feature, parse
from tfdist.export.saved_model import new_session

_MOST_RECORDS = 3
# Where in TensorFlow an error was raised.
_ORIGIN = re.compile(r"\[?\[?\{\{[^}]*\}\}\]?\]? ?| ?\[Op:.*")


def read_records(paths: Any) -> list[bytes]:
    """The first records of TFRecord files.

    Raises:
        ConfigError: there is no such file, it is damaged, or it has no record.
    """
    rule = "must be TFRecord files"
    names = [paths] if isinstance(paths, str) else list(checked_several("records", paths, rule))
    try:
        # A graph of its own: the caller may be within one, where nothing is eager.
        with tf.Graph().as_default() as graph, new_session(graph) as session:
            read = tf.data.TFRecordDataset([str(name) for name in names]).take(_MOST_RECORDS)
            batch = tf.compat.v1.data.make_one_shot_iterator(read.batch(_MOST_RECORDS)).get_next()
            found: list[bytes] = session.run(batch).tolist()
    except tf.errors.OutOfRangeError:
        found = []
    except tf.errors.OpError as error:
        raise ConfigError("records", names, f"{rule} ({_reason(error)})") from error
    if not found:
        raise ConfigError("records", names, "must have a record")
    return found


def made_up_records(features: Sequence[Feature]) -> list[bytes]:
    """Records with small ids, fractions, and empty texts."""
    values = {each.name: _made_up(each, _MOST_RECORDS) for each in features}
    return [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    each.name: _stored(each.parsed.dtype, values[each.name], row)
                    for each in features
                }
            )
        ).SerializeToString()
        for row in range(_MOST_RECORDS)
    ]


def cycled(records: Sequence[bytes], number: int) -> list[bytes]:
    """That many records; repeats them if there are fewer."""
    return list(itertools.islice(itertools.cycle(records), number))


def rows(features: Sequence[Feature], records: Sequence[bytes], number: int) -> dict[str, Any]:
    """That many rows: arrays, or sparse values, by the name of the feature.

    Args:
        features: what a row has.
        records: serialized `tf.train.Example`s. Without them the rows are made up.
        number: of rows.

    Raises:
        ConfigError: a record lacks a feature, or has it with another type or shape.
    """
    if not records:
        return {each.name: _made_up(each, number) for each in features}
    try:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            values: dict[str, Any] = session.run(
                parse(tf.constant(cycled(records, number)), features)
            )
    except tf.errors.OpError as error:
        names = ", ".join(each.name for each in features)
        rule = f"must have {names}: {_reason(error)}"
        raise ConfigError("records", f"{len(records)} records", rule) from error
    return values


def _reason(error: tf.errors.OpError) -> str:
    return reason_of(_ORIGIN.sub("", str(error.message)))


def _made_up(feature: Feature, number: int) -> Any:
    sizes = [1 if size is None else size for size in feature.shape.as_list()[1:]]
    if not feature.is_sparse:
        return _values(feature.dtype, [number, *sizes])
    indices = np.zeros([number, feature.shape.rank], np.int64)
    indices[:, 0] = np.arange(number)
    values = _values(feature.dtype, [number])
    return tf.compat.v1.SparseTensorValue(indices, values, np.array([number, *sizes], np.int64))


def _values(dtype: tf.DType, shape: Sequence[int]) -> Any:
    if dtype == tf.string:
        return np.full(shape, b"", object)
    if dtype.is_floating:
        return np.random.default_rng(0).random(shape).astype(dtype.as_numpy_dtype)
    return np.resize([0, 1], shape).astype(dtype.as_numpy_dtype)


def _stored(dtype: tf.DType, value: Any, row: int) -> Any:
    """A row of a feature as `tf.train.Example` holds it."""
    is_sparse = isinstance(value, tf.compat.v1.SparseTensorValue)
    values = np.ravel(value.values[row] if is_sparse else value[row]).tolist()
    if dtype == tf.string:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if dtype == tf.int64:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=map(int, values)))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
