"""What every loss checks of its batch."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError


def checked_inputs(field: str, inputs: Any, dim: int | None) -> Any:
    """The inputs as float32 [batch, dim]; they may be float16, bfloat16 or float64.

    A NaN in one example would reach the weights of every sampled class, and through them all other
    examples. So it is an error: tf.errors.InvalidArgumentError, which begins with the field.

    Raises:
        ConfigError: the type or the shape is another.
    """
    inputs = checked_tensor(field, inputs, "must be floating-point numbers")
    if not inputs.dtype.is_floating:
        raise ConfigError(field, inputs.dtype.name, "must be floating-point numbers")
    if not inputs.shape.is_compatible_with([None, dim]):
        raise ConfigError(
            field, f"the shape {inputs.shape}", f"must have the shape [batch, {dim or 'dim'}]"
        )
    inputs = tf.ensure_shape(tf.cast(inputs, tf.float32), [None, dim])
    return tf.debugging.check_numerics(inputs, f"{field} must be finite numbers")


def checked_ids(field: str, ids: Any, num_classes: int, *, of_any_shape: bool = False) -> Any:
    """The ids as int64 [batch], or of any shape.

    Where their values are known they are checked now, and else in each run, which then fails with
    tf.errors.InvalidArgumentError and the same text.

    Raises:
        ConfigError: the type or the shape is another, or an id is out of range.
    """
    ids = checked_tensor(field, ids, "must be integers")
    if not ids.dtype.is_integer:
        raise ConfigError(field, ids.dtype.name, "must be integers")
    ids = tf.cast(ids, tf.int64)
    if not of_any_shape:
        if not ids.shape.is_compatible_with([None]):
            raise ConfigError(field, f"the shape {ids.shape}", "must have the shape [batch]")
        ids = tf.ensure_shape(ids, [None])
    is_valid = (ids >= 0) & (ids < num_classes)
    rule = f"must be from 0 to {num_classes - 1}"
    if tf.executing_eagerly():
        wrong = tf.reshape(ids, [-1])[~tf.reshape(is_valid, [-1])]
        if len(wrong):
            raise ConfigError(field, int(wrong[0]), rule)
        return ids
    data = [f"{field} {rule}; the least and the greatest:", tf.reduce_min(ids), tf.reduce_max(ids)]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_valid), data)]):
        return tf.identity(ids)


def checked_numbers(field: str, numbers: Any) -> Any:
    """The numbers as float32 [n].

    Raises:
        ConfigError: the type or the shape is another.
        tf.errors.InvalidArgumentError: in a run, one is NaN or infinite.
    """
    numbers = checked_tensor(field, numbers, "must be numbers")
    if not (numbers.dtype.is_floating or numbers.dtype.is_integer):
        raise ConfigError(field, numbers.dtype.name, "must be numbers")
    if not numbers.shape.is_compatible_with([None]):
        raise ConfigError(field, f"the shape {numbers.shape}", "must have the shape [batch]")
    numbers = tf.ensure_shape(tf.cast(numbers, tf.float32), [None])
    return tf.debugging.check_numerics(numbers, f"{field} must be finite numbers")


def checked_rows(field: str, values: Any, like_field: str, like: Any) -> Any:
    """The tensor, which must have as many rows as another one.

    TensorFlow would repeat a single row. Where the sizes are known they are checked now, and else
    in each run, which then fails with tf.errors.InvalidArgumentError and the same rule.

    Raises:
        ConfigError: it has another number of rows.
    """
    rule = f"must have one for each row of {like_field}"
    found, wanted = values.shape[0], like.shape[0]
    if found is not None and wanted is not None:
        if found != wanted:
            raise ConfigError(field, f"{found} rows", f"{rule}, which has {wanted}")
        return values
    sizes = tf.shape(values)[0], tf.shape(like)[0]
    check = tf.debugging.Assert(tf.equal(*sizes), [f"{field} {rule}; the sizes:", *sizes])
    with tf.control_dependencies([check]):
        return tf.identity(values)


def checked_tensor(field: str, value: Any, rule: str) -> Any:
    """The value as a tensor of any type.

    Raises:
        ConfigError: no tensor can have it, such as None or rows of several lengths.
    """
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(field, value, rule) from error
