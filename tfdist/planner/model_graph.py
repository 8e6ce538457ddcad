"""What a real model needs, counted in its graph: parameters, FLOPs, and the memory of a step.

TensorFlow traces the model into a graph of its forward and its backward pass. It computes neither.
Every number is read from the types and shapes of the operations in that graph.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tensorflow as tf

from tfdist.errors import (
    ConfigError,
    checked_action,
    checked_choice,
    checked_flag,
    checked_integer,
)
from tfdist.planner.graph_scope import Buffer, Count, Scope, buffers_of, count
from tfdist.planner.op_flops import ELEMENT_WISE, PRODUCTS, REDUCTIONS, dims
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import OPTIMIZERS, SLOTS
from tfdist.planner.transformer import LARGEST

# They read the shape of a tensor, and the executor replaces them by constants.
_SHAPE_READERS = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"}


@dataclass(frozen=True)
class TracedModel:
    """What one training step of a traced model needs, for the batch of its input.

    Attributes:
        parameters: by layer and variable.
        trainable_parameters: those with a gradient, by layer and variable.
        forward_flops: of the forward pass, by type of operation.
        backward_flops: of the gradients of all trainable parameters.
        gathered_bytes: that gathers (lookups in embeddings) read in the forward pass.
        variable_bytes: of all parameters.
        gradient_bytes: of the gradients; of an embedding only the rows of the batch.
        slot_bytes: of the optimizer.
        input_bytes: of the batch, and of constants that a function has captured.
        saved_bytes: of what the forward pass computes and the backward pass reads, by type of the
            operation that computes it.
        live_bytes: the most that tensors of the step hold at a time, when the operations run in
            their order in the graph and the gradients stay to the end. Its parts are what is saved,
            gradients and temporary then.
        uncounted: operations whose work is unknown, with their number; the FLOPs lack them.
        saved_bytes_per_example: what one more example adds to `saved_bytes`; None if not asked for.
        peak_bytes_per_example: what it adds to `peak_bytes`, between this batch and its double.
    """

    parameters: Quantity
    trainable_parameters: Quantity
    forward_flops: Quantity
    backward_flops: Quantity
    gathered_bytes: Quantity
    variable_bytes: Quantity
    gradient_bytes: Quantity
    slot_bytes: Quantity
    input_bytes: Quantity
    saved_bytes: Quantity
    live_bytes: Quantity
    uncounted: Mapping[str, int]
    saved_bytes_per_example: Quantity | None = None
    peak_bytes_per_example: Quantity | None = None

    @property
    def peak_bytes(self) -> Quantity:
        """The memory of a step: variables, slots, the batch, and the tensors that live together.

        It lacks what the program has without the model, the scratch memory of kernels, and what an
        allocator holds back.
        """
        parts = [self.variable_bytes, self.slot_bytes, self.input_bytes, self.live_bytes]
        return Quantity.sum_of("peak", "bytes", parts)


def plan_keras(
    model_or_function: Any,
    input_spec: Any,
    *,
    model: Any = None,
    optimizer: str = "adam",
    trips: Mapping[str, int] | None = None,
    per_example: bool = True,
) -> TracedModel:
    """Counts what a training step of a Keras model or of a function needs, without running one.

    A model that is not built yet is built, so its variables are made. Pass a function that returns
    the loss of a batch to include the loss: its largest tensors are often the logits.

    The gradients are those of all floating-point results with respect to all trainable variables.
    Do not pass a whole training step: the gradients in it would count as forward pass.

    Args:
        model_or_function: a Keras model or layer, a `tf.function`, a concrete function, or any
            function of tensors.
        input_spec: a `tf.TensorSpec` with a fixed shape, or a structure of several. For a function
            a tuple has its arguments. The first dimension of each tensor is the batch.
        model: the Keras model whose weights are the parameters, if you pass a function; by default
            these are the variables that the function reads.
        optimizer: "sgd", "momentum", "adagrad" or "adam": it sets the slots.
        trips: how often each loop runs its body, by the name of its operation. A loop that you do
            not name is an error that names it.
        per_example: whether to trace a second time with twice the batch, to find what one example
            adds. False for a function that takes one batch size alone.

    Raises:
        ConfigError: a shape is not fixed, a loop has no trip count, or an argument is wrong.
            Errors of the model itself pass through.
    """
    checked_action("model_or_function", model_or_function, "of tensors", may_be_none=False)
    checked_choice("optimizer", optimizer, OPTIMIZERS)
    checked_flag("per_example", per_example)
    _check_shapes(input_spec)
    function, arguments = model_or_function, (input_spec,)
    if _has_weights(function):
        function, model = partial(function, training=True), function
    else:
        # What a tf.function wraps: its own input_signature may leave shapes open.
        function = getattr(function, "python_function", function)
        arguments = input_spec if isinstance(input_spec, tuple) else arguments
    if model is not None and not _has_weights(model):
        raise ConfigError("model", model, "must be a Keras model, or None")
    trips = _checked_trips(trips)
    plan = _plan(_Trace(function, arguments, model, trips), optimizer)
    if not per_example:
        return plan
    batch, doubled = _doubled(arguments)
    twice = _plan(_Trace(function, doubled, model, trips), optimizer)
    return replace(
        plan,
        saved_bytes_per_example=_per_example(plan.saved_bytes, twice.saved_bytes, batch),
        peak_bytes_per_example=_per_example(plan.peak_bytes, twice.peak_bytes, batch),
    )


def _plan(trace: _Trace, optimizer: str) -> TracedModel:
    forward, backward = count(trace.scope, trace.forward), count(trace.scope, trace.backward)
    slots = {"slots": len(SLOTS[optimizer]), "bytes": sum(map(_variable_bytes, trace.trainable))}
    return TracedModel(
        parameters=_variables("parameters", trace.weights, "parameters"),
        trainable_parameters=_variables("trainable parameters", trace.trainable, "parameters"),
        forward_flops=_flops("forward", forward),
        backward_flops=_flops("backward", backward),
        gathered_bytes=Quantity.sum_of("gathered", "bytes", _tensors(forward.gathered)),
        variable_bytes=_variables("variables", trace.weights, "bytes"),
        gradient_bytes=_memory("gradients", trace.gradients()),
        slot_bytes=Quantity("slots", math.prod(slots.values()), "bytes", "slots bytes", slots),
        input_bytes=trace.inputs(),
        saved_bytes=_memory("saved", trace.saved()),
        live_bytes=trace.live(),
        uncounted=dict(sorted((forward.unknown + backward.unknown).items())),
    )


class _Trace:
    """The graph of a function and its gradients.

    Attributes:
        scope: the graph.
        forward: the operations of the function.
        backward: those of the gradients.
        weights: variables, of the model or of the function.
        trainable: those with respect to which the gradients are.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: Any, model: Any, trips: Mapping[str, int]
    ) -> None:
        seen: dict[str, Any] = {}

        def step(*arguments: Any) -> None:
            graph = tf.compat.v1.get_default_graph()
            with tf.GradientTape() as tape:
                results = tf.nest.flatten(function(*arguments))
            seen["forward"] = len(graph.get_operations())
            trainable = tape.watched_variables() if model is None else model.trainable_weights
            sources = [_variable(each) for each in trainable]
            results = [each for each in results if tf.is_tensor(each)]
            floats = [each for each in results if each.dtype.is_floating]
            gradients = tape.gradient(floats, sources) if floats else []
            seen.update(graph=graph, results=results, trainable=trainable, gradients=gradients)

        # The graph belongs to the concrete function, which must not be freed.
        self._concrete = tf.function(step).get_concrete_function(*arguments)
        if not any(each.dtype.is_floating for each in seen["results"]):
            rule = "must return a floating-point tensor, such as the loss"
            raise ConfigError("model_or_function", function, rule)
        graph, tensors = seen["graph"], tf.nest.flatten(seen["gradients"], expand_composites=True)
        self._gradients = [each for each in tensors if each is not None]
        self.scope = Scope(graph, [*seen["results"], *self._gradients], trips)
        computed = {op.name for op in graph.get_operations()[: seen["forward"]]}
        self.forward = [op for op in self.scope.operations if op.name in computed]
        self.backward = [op for op in self.scope.operations if op.name not in computed]
        self.trainable = list(seen["trainable"])
        read = [each for each in self._concrete.variables if each.dtype.is_floating]
        self.weights = read if model is None else list(model.weights)

    def saved(self) -> set[Buffer]:
        """What the forward pass computes and the backward pass reads."""
        computed = {op.name for op in self.forward}
        return {
            buffer
            for op in self.backward
            if op.type not in _SHAPE_READERS
            for tensor in op.inputs
            if tensor.op.name in computed
            for buffer in buffers_of(self.scope, tensor)
        }

    def gradients(self) -> set[Buffer]:
        """The gradients; a sparse one has values and indices."""
        return {buffer for tensor in self._gradients for buffer in buffers_of(self.scope, tensor)}

    def inputs(self) -> Quantity:
        """The batch, and constants that the function has captured."""
        sizes = Counter(
            (each.dtype.name, dims(each), each.dtype.size)
            for each in self.scope.graph.inputs
            if each.dtype.name not in ("resource", "variant", "string")
        )
        return Quantity.sum_of("inputs", "bytes", _tensors(sizes))

    def live(self) -> Quantity:
        """The tensors that live when they hold most memory."""
        saved, gradients = self.saved(), self.gradients()
        steps = [_buffers(scope, op) for scope, op in self.scope.walk()]
        last = {buffer: number for number, used in enumerate(steps) for buffer in used}
        last |= dict.fromkeys(gradients, len(steps))

        def size(buffers: Iterable[Buffer]) -> int:
            # A trip of a loop frees what is not saved.
            return sum(each.bytes * (each.times if each in saved else 1) for each in buffers)

        alive: set[Buffer] = set()
        then: set[Buffer] = set()
        now = most = 0
        for number, used in enumerate(steps):
            now += size(used - alive)
            alive |= used
            if now > most:
                most, then = now, set(alive)
            freed = {buffer for buffer in used if last[buffer] == number}
            now -= size(freed)
            alive -= freed
        kinds = {"saved": saved, "gradients": gradients - saved}
        kinds["temporary"] = then - saved - gradients
        parts = [Quantity(name, size(then & kind), "bytes") for name, kind in kinds.items()]
        return Quantity.sum_of("live", "bytes", parts)


def _buffers(scope: Scope, op: Any) -> set[Buffer]:
    """The memory that an operation reads and writes, without that of integers: indices, shapes."""
    tensors = [each for each in [*op.inputs, *op.outputs] if not each.dtype.is_integer]
    return {buffer for each in tensors for buffer in buffers_of(scope, each)}


def _has_weights(model: Any) -> bool:
    """Whether it is a Keras model or layer, of Keras 2 or 3; it may not be built yet."""
    return hasattr(type(model), "trainable_weights")


def _check_shapes(input_spec: Any) -> None:
    """Raises ConfigError if the input is not made of tensors of fixed shapes."""
    specs = tf.nest.flatten(input_spec)
    for spec in specs:
        if not isinstance(spec, tf.TensorSpec):
            raise ConfigError("input_spec", spec, "must be a tf.TensorSpec, or a structure of them")
        if not spec.shape.is_fully_defined():
            raise ConfigError("input_spec", spec, "must have a fixed shape: state the batch too")
    if not specs:
        raise ConfigError("input_spec", input_spec, "must have a tensor")


def _checked_trips(trips: Any) -> dict[str, int]:
    if not isinstance(trips, Mapping | None):
        raise ConfigError("trips", trips, "must map names of loops to numbers")
    return {
        name: checked_integer(f"trips[{name!r}]", number, 0, LARGEST)
        for name, number in (trips or {}).items()
    }


def _doubled(arguments: Any) -> tuple[int, Any]:
    """The batch, and the arguments of twice the batch."""
    batches = {spec.shape[0] if spec.shape.rank else 0 for spec in tf.nest.flatten(arguments)}
    if len(batches) > 1 or 0 in batches:
        rule = "must have the batch as first dimension of each tensor, or per_example=False"
        raise ConfigError("input_spec", arguments, rule)
    [batch] = batches

    def doubled(spec: Any) -> Any:
        return tf.TensorSpec([2 * batch, *spec.shape[1:]], spec.dtype, spec.name)

    return batch, tf.nest.map_structure(doubled, arguments)


def _per_example(once: Quantity, twice: Quantity, batch: int) -> Quantity:
    values = {"twice": twice.value, "once": once.value, "batch": batch}
    slope = (twice.value - once.value) / batch
    return Quantity(f"{once.name} per example", slope, "bytes", "(twice - once) / batch", values)


def _variable(weight: Any) -> Any:
    """The `tf.Variable` of a weight: Keras 3 has a class of its own."""
    return weight if isinstance(weight, tf.Variable) else weight.value


def _variable_bytes(weight: Any) -> int:
    return int(math.prod(weight.shape) * tf.as_dtype(weight.dtype).size)


def _variables(name: str, weights: Iterable[Any], unit: str) -> Quantity:
    """A sum by layer and variable, of numbers of parameters or of their bytes."""
    layers: dict[str, list[Quantity]] = {}
    for weight in weights:
        # Keras 3 has paths; elsewhere the name of a variable is one.
        path = getattr(weight, "path", weight.name).removesuffix(":0")
        layer, _, last = path.rpartition("/")
        values = {f"d{axis}": size for axis, size in enumerate(weight.shape)}
        if unit == "bytes":
            values["bytes"] = tf.as_dtype(weight.dtype).size
        formula = " ".join(values) or "1"
        part = Quantity(last, math.prod(values.values()), unit, formula, values)
        layers.setdefault(layer, []).append(part)
    parts = [Quantity.sum_of(layer, unit, found) for layer, found in layers.items() if layer]
    return Quantity.sum_of(name, unit, [*parts, *layers.get("", [])])


def _flops(name: str, counted: Count) -> Quantity:
    """A sum by type of operation. Element-wise work and reductions are one part each."""
    kinds: dict[str, dict[str, list[Quantity]]] = {PRODUCTS: {}, ELEMENT_WISE: {}, REDUCTIONS: {}}
    for (op_type, shapes, work), times in counted.work.items():
        values = {"times": times, **dict(work.values)}
        formula = f"times {work.formula}"
        part = Quantity(shapes, times * work.flops, "FLOPs", formula, values)
        kinds[work.kind].setdefault(op_type, []).append(part)
    products, *others = (
        [Quantity.sum_of(op_type, "FLOPs", parts) for op_type, parts in types.items()]
        for types in kinds.values()
    )
    sums = (
        Quantity.sum_of(kind, "FLOPs", parts)
        for kind, parts in zip((ELEMENT_WISE, REDUCTIONS), others, strict=True)
    )
    return Quantity.sum_of(name, "FLOPs", [*products, *sums])


def _memory(name: str, buffers: Iterable[Buffer]) -> Quantity:
    """A sum by type of operation and shape."""
    types: dict[str, Counter[Any]] = {}
    for each in buffers:
        sizes = types.setdefault(each.type, Counter())
        sizes[each.dtype, each.shape, each.element_bytes] += each.times
    parts = [Quantity.sum_of(key, "bytes", _tensors(sizes)) for key, sizes in sorted(types.items())]
    return Quantity.sum_of(name, "bytes", parts)


def _tensors(sizes: Mapping[Any, int]) -> list[Quantity]:
    """Tensors of some types and shapes, and how many there are of each."""
    found = []
    for (dtype, shape, element_bytes), times in sizes.items():
        values = {"times": times, "elements": math.prod(shape), "bytes": element_bytes}
        label = f"{dtype}{list(shape)}"
        formula = "times elements bytes"
        found.append(Quantity(label, math.prod(values.values()), "bytes", formula, values))
    return found
