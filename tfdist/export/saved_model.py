"""Writes a graph that was cut at its reader as a SavedModel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfdist.errors import ConfigError
from tfdist.export.cut import CutGraph
from tfdist.export.feature import EXAMPLES

SERVING_DEFAULT = "serving_default"
_v1 = tf.compat.v1
_RUN_SECS = 600.0  # far longer than a model takes for a few rows, or to be restored


def write(cut: CutGraph, checkpoint: str | None, folder: str) -> None:
    """Writes the SavedModel into a folder that does not exist yet.

    Raises:
        ConfigError: the checkpoint lacks a variable, or a file of a lookup table is missing.
    """
    with restored(cut.meta_graph, checkpoint) as session, session.graph.as_default() as graph:
        variables = _v1.global_variables()
        builder = _v1.saved_model.Builder(folder)
        builder.add_meta_graph_and_variables(
            session,
            [_v1.saved_model.tag_constants.SERVING],
            signature_def_map=_signatures(cut, graph),
            assets_collection=graph.get_collection(_v1.GraphKeys.ASSET_FILEPATHS),
            main_op=_v1.tables_initializer(),
            strip_default_attrs=True,
            saver=_v1.train.Saver(variables) if variables else None,
        )
        builder.save()


@contextmanager
def restored(meta_graph: Any, checkpoint: str | None) -> Iterator[Any]:
    """A session with the graph: its variables restored, its tables initialized.

    Raises:
        ConfigError: the checkpoint lacks a variable, or a file of a lookup table is missing.
    """
    graph = tf.Graph()
    with new_session(graph) as session:
        with graph.as_default():
            _v1.train.import_meta_graph(meta_graph)
            variables = _v1.global_variables()
            if variables:
                _check_variables(variables, checkpoint)
                _v1.train.Saver(variables).restore(session, checkpoint)
            try:
                session.run(_v1.tables_initializer())
            except tf.errors.NotFoundError as error:
                rule = "is a file of a lookup table, and must be there"
                raise ConfigError("vocabulary", _missing_file(error), rule) from error
        yield session


def new_session(graph: tf.Graph) -> Any:
    """A session in which a run that waits for a reader after all ends with an error."""
    config = _v1.ConfigProto(operation_timeout_in_ms=int(_RUN_SECS * 1000))
    return _v1.Session(graph=graph, config=config)


def _check_variables(variables: Sequence[Any], checkpoint: str | None) -> None:
    if checkpoint is None:
        raise ConfigError("checkpoint", None, "must be given: the graph has variables")
    saved = _v1.train.NewCheckpointReader(checkpoint).get_variable_to_shape_map()
    for variable in variables:
        name, shape = variable.op.name, variable.shape
        if (whole := variable._get_save_slice_info()) is not None:
            name, shape = whole.full_name, whole.full_shape
        if name not in saved:
            raise ConfigError("checkpoint", checkpoint, f"must have the variable {name}")
        if list(shape) != saved[name]:
            rule = f"must have the variable {name} with shape {list(shape)}, not {saved[name]}"
            raise ConfigError("checkpoint", checkpoint, rule)


def _missing_file(error: tf.errors.NotFoundError) -> str:
    return str(error.message).partition(";")[0]


def _signatures(cut: CutGraph, graph: tf.Graph) -> dict[str, Any]:
    info = _v1.saved_model.build_tensor_info
    outputs = {name: info(graph.get_tensor_by_name(text)) for name, text in cut.outputs.items()}
    inputs = {}
    for name, parts in cut.inputs.items():
        tensors = [graph.get_tensor_by_name(text) for text in parts]
        inputs[name] = info(tf.SparseTensor(*tensors) if len(tensors) == 3 else tensors[0])
    build, method = _v1.saved_model.build_signature_def, "tensorflow/serving/predict"
    signatures = {SERVING_DEFAULT: build(inputs, outputs, method)}
    if cut.examples is not None:
        serialized = {EXAMPLES: info(graph.get_tensor_by_name(cut.examples))}
        signatures[EXAMPLES] = build(serialized, outputs, method)
    return signatures
