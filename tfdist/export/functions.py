"""Exports what TensorFlow 2 trains: a function, a `tf.Module`, or a Keras model."""

from __future__ import annotations

import keyword
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfdist.errors import ConfigError
from tfdist.export import verify
from tfdist.export.feature import EXAMPLES, Feature, parse, parsed_as, with_checked_ids
from tfdist.export.saved_model import SERVING_DEFAULT

_SPARSE_FIELDS = ("indices_tensor_name", "values_tensor_name", "dense_shape_tensor_name")


def _argument(number: int, part: tf.TensorSpec) -> tf.TensorSpec:
    is_name = part.name.isidentifier() and not keyword.iskeyword(part.name)
    return tf.TensorSpec(part.shape, part.dtype, part.name if is_name else f"input_{number}")


def is_function(source: Any) -> bool:
    """Whether the source is a function or a model of TensorFlow 2."""
    if isinstance(source, (str, os.PathLike, tf.Graph)):
        return False  # without an import of Keras
    return isinstance(source, (tf.Module, tf.keras.Model)) or hasattr(
        source, "get_concrete_function"
    )


class FunctionSource:
    """A function of named tensors, with what owns its variables.

    Attributes:
        features: its inputs.
        trained_batch: None: it takes any number of rows.
    """

    trained_batch = None

    def __init__(self, source: Any, inputs: Mapping[str, Any] | None, outputs: Any) -> None:
        """Takes a `tf.function`, a `tf.Module` with one, or a Keras model.

        Args:
            source: what to export.
            inputs: a `tf.TensorSpec` or `tf.SparseTensorSpec` for each input by its name, or None
                for the ones that the function or model was made with.
            outputs: the names of the outputs in their order; None for the keys of the dict that the
                function returns, or for `output_0` and so on.

        Raises:
            ConfigError: the inputs are not known, or no batch is their first dimension.
        """
        self._source = source
        self._is_keras = isinstance(source, tf.keras.Model)
        specs, call = _keras(source, inputs) if self._is_keras else _function(source, inputs)
        self.features = [_feature(name, spec) for name, spec in specs.items()]
        self._compute: Callable[[Mapping[str, Any]], Any] = call
        self._output_names = outputs

    @contextmanager
    def trained(self) -> Iterator[verify.Model]:
        """Computes the outputs by the function itself."""
        yield self._run

    def _run(self, values: verify.Values) -> verify.Values:
        tensors = {
            each.name: tf.SparseTensor(*values[each.name])
            if each.is_sparse
            else tf.constant(values[each.name], each.dtype)
            for each in self.features
        }
        return {name: tensor.numpy() for name, tensor in self._named_outputs(tensors).items()}

    def _named_outputs(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return _named(self._compute(tensors), self._output_names)

    def write(self, folder: str, num_ids: Mapping[str, int]) -> None:
        """Writes the SavedModel into a folder that does not exist yet."""
        features = self.features

        def predict(values: Mapping[str, Any]) -> dict[str, Any]:
            return self._named_outputs(with_checked_ids(values, num_ids))

        arguments = [_argument(number, part) for number, part in enumerate(self._parts)]

        @tf.function(input_signature=arguments)
        def serve(*tensors: Any) -> Any:
            left = iter(tensors)
            values = {each.name: each.joined([next(left) for _ in each.parts]) for each in features}
            return predict(values)

        signatures = {SERVING_DEFAULT: serve}
        if all(each.parsed is not None for each in features):

            @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=EXAMPLES)])
            def serve_examples(examples: Any) -> Any:
                return predict(parse(examples, features))

            signatures[EXAMPLES] = serve_examples
        if self._is_keras and hasattr(tf.keras, "export"):
            self._write_keras(folder, signatures)
        else:
            served = tf.Module()
            served.source = self._source
            # A function keeps no reference to its variables that TensorFlow would save.
            served.variables_of_function = list(serve.get_concrete_function().graph.variables)
            tf.saved_model.save(served, folder, signatures=signatures)
        if any(each.name != part for each, part in zip(arguments, self._names, strict=True)):
            self._name_inputs(folder, [each.name for each in arguments])

    @property
    def _parts(self) -> list[tf.TensorSpec]:
        return [part for each in self.features for part in each.parts]

    @property
    def _names(self) -> list[str]:
        """The name of each part, if it alone is an input; else ""."""
        return [
            name
            for each in self.features
            for name in ([each.name] if not each.is_sparse else [""] * len(each.parts))
        ]

    def _name_inputs(self, folder: str, arguments: Sequence[str]) -> None:
        """Gives the inputs their names, and joins the parts of each SparseTensor.

        The arguments of a function of TensorFlow 2 must be names of Python, and one tensor each.
        """
        path = os.path.join(folder, "saved_model.pb")
        with open(path, "rb") as file:
            model = saved_model_pb2.SavedModel.FromString(file.read())
        inputs = model.meta_graphs[0].signature_def[SERVING_DEFAULT].inputs
        left = iter([inputs.pop(name) for name in arguments])
        for each in self.features:
            parts = [next(left) for _ in each.parts]
            if not each.is_sparse:
                inputs[each.name].CopyFrom(parts[0])
                continue
            info = inputs[each.name]
            info.dtype = each.dtype.as_datatype_enum
            info.tensor_shape.CopyFrom(each.shape.as_proto())
            for field, part in zip(_SPARSE_FIELDS, parts, strict=True):
                setattr(info.coo_sparse, field, part.name)
        with open(path, "wb") as file:
            file.write(model.SerializeToString())

    def _write_keras(self, folder: str, signatures: Mapping[str, Any]) -> None:
        # `tf.saved_model.save` of a Keras 3 model writes variables that C++ does not find.
        for function in signatures.values():
            function.get_concrete_function()  # builds a model that was not called yet
        archive = tf.keras.export.ExportArchive()
        archive.track(self._source)
        for name, function in signatures.items():
            archive.add_endpoint(name, function)
        archive.write_out(folder, verbose=False)


def _function(source: Any, inputs: Mapping[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """The inputs of a function by name, and a function of a dict with them."""
    function = source.__call__ if isinstance(source, tf.Module) else source
    if not hasattr(function, "get_concrete_function"):
        rule = "must be a tf.function, a tf.Module whose __call__ is one, or a Keras model"
        raise ConfigError("source", source, rule)
    if inputs is not None:
        return dict(inputs), lambda values: function(**values)
    try:
        concrete = function.get_concrete_function()
    except (TypeError, ValueError) as error:
        rule = "must be given: the function has no input_signature"
        raise ConfigError("inputs", None, rule) from error
    arguments, keywords = concrete.structured_input_signature
    names = [name for name in concrete.function_type.parameters if name != "self"]
    specs = {**dict(zip(names, arguments, strict=False)), **keywords}
    for name, spec in specs.items():
        if not isinstance(spec, (tf.TensorSpec, tf.SparseTensorSpec)):
            raise ConfigError("inputs", name, "must be a tensor; use one argument for each input")
    return specs, lambda values: function(**values)


def _keras(model: Any, inputs: Mapping[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """The inputs of a Keras model by name, and a function of a dict with them."""
    if inputs is not None:
        is_one = len(inputs) == 1
        return dict(inputs), lambda values: model(
            *(values.values() if is_one else [values]), training=False
        )
    structure = getattr(model, "input", None) or getattr(model, "inputs", None)
    if structure is None:
        raise ConfigError("inputs", None, "must be given: the model has no named inputs")
    if isinstance(structure, Mapping):
        names = sorted(structure)  # the order of tf.nest
    else:
        names = [each.name.partition(":")[0] for each in tf.nest.flatten(structure)]
    specs = dict(zip(names, map(_spec, tf.nest.flatten(structure)), strict=True))

    def call(values: Mapping[str, Any]) -> Any:
        in_order = [values[name] for name in names]
        if isinstance(structure, Mapping):
            return model(dict(zip(names, in_order, strict=True)), training=False)
        return model(in_order if len(in_order) > 1 else in_order[0], training=False)

    return specs, call


def _spec(tensor: Any) -> Any:
    kind = tf.SparseTensorSpec if getattr(tensor, "sparse", False) else tf.TensorSpec
    return kind(tensor.shape, tf.as_dtype(tensor.dtype))


def _feature(name: str, spec: Any) -> Feature:
    shape, is_sparse = spec.shape, isinstance(spec, tf.SparseTensorSpec)
    if shape.rank in (None, 0):
        raise ConfigError("inputs", name, "must have the batch as first dimension")
    shape = tf.TensorShape([None, *shape[1:]])
    parsed = parsed_as(spec.dtype, shape, is_sparse=is_sparse)
    return Feature(name, spec.dtype, shape, is_sparse, parsed=parsed)


def _named(computed: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """The tensors that a function returns, by name."""
    if isinstance(computed, Mapping):
        return dict(computed)
    tensors = tf.nest.flatten(computed)
    names = names or [f"output_{number}" for number in range(len(tensors))]
    if len(names) != len(tensors):
        raise ConfigError("outputs", names, f"must be {len(tensors)} names")
    return dict(zip(names, tensors, strict=True))
