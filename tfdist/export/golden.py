"""What an exported model has answered: for a check of the server, and to warm it up.

`golden.json` has requests and answers in the columnar form of TensorFlow Serving's REST API. The
file of warm-up requests has the same requests as TensorFlow Serving reads them on start, which are
messages of its own; their few fields are encoded here, since its Python package pins a TensorFlow.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.errors import DataError

GOLDEN = "golden.json"
_WARM_UP = Path("assets.extra", "tf_serving_warmup_requests")


@dataclass(frozen=True)
class Answer:
    """A request and what the model has answered.

    Attributes:
        signature: its name.
        inputs: arrays, or sparse values, by name.
        outputs: arrays by name.
    """

    signature: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


def write(folder: Path, model: str, answers: Sequence[Answer]) -> None:
    """Writes both files into the folder of a version of the model."""
    requests = [
        {
            "signature_name": each.signature,
            "inputs": {name: to_json(value) for name, value in each.inputs.items()},
            "outputs": {name: to_json(value) for name, value in each.outputs.items()},
        }
        for each in answers
    ]
    (folder / GOLDEN).write_text(json.dumps({"requests": requests}) + "\n", "utf-8")
    path = folder / _WARM_UP
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in answers:
            if not any(
                isinstance(value, tf.compat.v1.SparseTensorValue) for value in each.inputs.values()
            ):
                writer.write(_prediction_log(model, each))


def read(folder: Path) -> list[dict[str, Any]]:
    """The requests in the folder of a version, as `golden.json` has them.

    Raises:
        DataError: there is no such file, or it is not one of these.
    """
    path = folder / GOLDEN
    try:
        requests = json.loads(path.read_text("utf-8"))["requests"]
        for each in requests:
            each["signature_name"], each["inputs"].items(), each["outputs"].items()
        if not requests:
            raise ValueError("it has no request")
    except OSError as error:
        raise DataError(str(path), None, f"cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(str(path), None, f"is not what `tfdist export` writes: {error}") from error
    return list(requests)


def from_json(value: Any, dtype: tf.DType) -> Any:
    """The array or sparse value that `to_json` has written, or that a server has answered."""
    if isinstance(value, dict) and "dense_shape" in value:
        return tf.compat.v1.SparseTensorValue(
            np.array(value["indices"], np.int64).reshape(-1, len(value["dense_shape"])),
            from_json(value["values"], dtype),
            np.array(value["dense_shape"], np.int64),
        )
    return np.array(_bytes(value) if dtype == tf.string else value, dtype.as_numpy_dtype)


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(each) for each in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def to_json(value: Any) -> Any:
    """An array as nested lists; bytes as base64, a sparse value as its three parts."""
    if isinstance(value, tf.compat.v1.SparseTensorValue):
        return {part: to_json(each) for part, each in value._asdict().items()}
    return _plain(np.asarray(value).tolist())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _prediction_log(model: str, answer: Answer) -> bytes:
    """A PredictionLog of TensorFlow Serving with this request."""
    spec = _message(1, model.encode()) + _message(3, answer.signature.encode())
    request = _message(1, spec)
    for name, value in answer.inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _message(2, _message(1, name.encode()) + _message(2, tensor))
    return _message(6, _message(1, request))  # predict_log.request


def _message(number: int, content: bytes) -> bytes:
    """A field of protocol buffers that has a length: a text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
