"""A training graph as it was written: its MetaGraphDef and its checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import message, text_format  # type: ignore[import-untyped]
from tensorflow.core.protobuf import meta_graph_pb2

from tfdist.errors import ConfigError, checked_path

_GRAPH_DEFS = (".pb", ".pbtxt")


@dataclass(frozen=True)
class TrainingGraph:
    """A graph and where its variables are saved.

    Attributes:
        meta_graph: a MetaGraphDef.
        checkpoint: the prefix of its files; None for a frozen graph, which has no variables.
    """

    meta_graph: Any
    checkpoint: str | None


def load(source: Any, checkpoint: Any) -> TrainingGraph:
    """Reads a training graph.

    Args:
        source: a `tf.Graph`, a MetaGraphDef, or a path: of a `.meta` file; of a folder with a
            checkpoint, or of a checkpoint, if its `.meta` file is there too; of a GraphDef in a
            `.pb` or `.pbtxt` file.
        checkpoint: a checkpoint, or a folder whose latest one is meant. By default the one that
            belongs to the `.meta` file.

    Raises:
        ConfigError: a file is missing, or is not what its name says.
    """
    if isinstance(source, tf.Graph):
        with source.as_default():
            source = tf.compat.v1.train.export_meta_graph()
    if isinstance(source, meta_graph_pb2.MetaGraphDef):
        return TrainingGraph(
            source, _checkpoint("checkpoint", checkpoint) if checkpoint is not None else None
        )
    path = checked_path("source", source)
    if path.endswith(_GRAPH_DEFS):
        graph_def = _read(path, tf.compat.v1.GraphDef())
        return TrainingGraph(meta_graph_pb2.MetaGraphDef(graph_def=graph_def), None)
    if not path.endswith(".meta"):
        path = f"{_checkpoint('source', path)}.meta"
    if not os.path.isfile(path):
        rule = "must have a graph: there is no file"
        raise ConfigError("source", source, f"{rule} {path}")
    meta_graph = _read(path, meta_graph_pb2.MetaGraphDef())
    return TrainingGraph(
        meta_graph, _checkpoint("checkpoint", checkpoint or path.removesuffix(".meta"))
    )


def _checkpoint(field: str, value: Any) -> str:
    path = checked_path(field, value)
    found = path if _is_saved(path) else tf.train.latest_checkpoint(path)
    if found is None or not _is_saved(found):
        raise ConfigError(field, path, "must be a checkpoint or a folder with one")
    return str(found)


def _is_saved(prefix: str) -> bool:
    """Whether a checkpoint has that prefix, in TensorFlow's present format or its first one."""
    return os.path.isfile(f"{prefix}.index") or os.path.isfile(prefix)


def _read(path: str, proto: Any) -> Any:
    try:
        data = Path(path).read_bytes()
        if path.endswith(".pbtxt"):
            text_format.Parse(data.decode(), proto)
        else:
            proto.ParseFromString(data)
    except (OSError, message.DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        what = type(proto).__name__
        raise ConfigError("source", path, f"must be a file with a {what} ({error})") from error
    return proto
