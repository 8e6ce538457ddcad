"""A graph of TensorFlow and the functions that it calls: their work, and which tensors hold memory.

A call, a branch and a loop are one operation in their graph; what they run is in the graph of a
function. A `Scope` is one such graph, with the operation that calls it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from tfdist.errors import ConfigError
from tfdist.planner.op_flops import Work, dims, work_of

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_BRANCHES = {"If", "StatelessIf", "Case", "StatelessCase"}
_LOOPS = {"While", "StatelessWhile"}
# Their result is the buffer of their first input; IdentityN has one for each.
_ALIASES = {
    *("Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "EnsureShape", "Bitcast"),
    *("StopGradient", "PreventGradient", "CheckNumerics", "CheckNumericsV2"),
}
_GATHERS = {"Gather", "GatherV2", "GatherNd", "ResourceGather", "ResourceGatherNd"}
_SCRATCH_OUTPUT = 5  # for the library of a GPU; its shape is not known, and a CPU leaves it empty
_VARIABLES = {"ReadVariableOp", "VarHandleOp", "VariableV2"}


class Scope:
    """The operations of one graph on which some of its tensors depend.

    The others do not run. A gradient has some: that of a product has two products, of which the
    first layer of a model needs one.

    Args:
        graph: a `FuncGraph`.
        wanted: tensors of the graph.
        trips: how often each loop runs its body, by the name of its operation.

    Attributes:
        operations: of the graph, in their order; those with side effects are among them.
        times: how often they run.
    """

    def __init__(self, graph: Any, wanted: Iterable[Any], trips: Mapping[str, int]) -> None:
        self.graph = graph
        self.trips = trips
        self.path: tuple[str, ...] = ()
        self.times = 1
        self.call: Any = None
        self.outer: Scope | None = None
        self._inside: dict[str, list[Scope]] = {}
        self._inputs = {tensor.name: number for number, tensor in enumerate(graph.inputs)}
        wanted = list(wanted)
        self._used = {tensor.name for tensor in wanted}
        todo = [*(tensor.op for tensor in wanted), *graph.control_outputs]
        names = set()
        while todo:
            op = todo.pop()
            if op.name not in names:
                names.add(op.name)
                self._used.update(tensor.name for tensor in op.inputs)
                todo += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
        self.operations = [op for op in graph.get_operations() if op.name in names]

    def inside(self, op: Any) -> list[Scope]:
        """The graphs that this operation runs: one, those of its branches, or a loop's two.

        Raises:
            ConfigError: it is a loop, and `trips` does not have its name.
        """
        if op.name not in self._inside:
            self._inside[op.name] = [self._called(op, each) for each in _functions(op)]
        return self._inside[op.name]

    def input_number(self, tensor: Any) -> int:
        """Which input of the graph a placeholder is."""
        return self._inputs[tensor.name]

    def _called(self, op: Any, function: str) -> Scope:
        # No public name leads from a call to the graph of its function with all shapes.
        graph = self.graph._get_function(function).graph
        is_used = [op.type in _LOOPS or each.name in self._used for each in op.outputs]
        inner = Scope(graph, compress(graph.outputs, is_used), self.trips)
        inner.path = (*self.path, op.name, function)
        inner.times = self.times * (self._trips_of(op.name) if op.type in _LOOPS else 1)
        inner.call, inner.outer = op, self
        return inner

    def _trips_of(self, name: str) -> int:
        # TensorFlow calls the gradient of the loop a/while gradient_tape/a/while_grad.
        for key in sorted(self.trips, key=len, reverse=True):
            if name == key or f"{key}_grad" in name:
                return self.trips[key]
        rule = f"must state how often the loop {name!r} runs: trips={{{name!r}: number}}"
        raise ConfigError("trips", dict(self.trips), rule)

    def walk(self) -> Iterator[tuple[Scope, Any]]:
        """The operations with all that they run, and the scope of each.

        A loop and a branch follow what they run, because they hold their inputs until then. A call
        is replaced: the runtime writes its operations into the graph of the caller.
        """
        for op in self.operations:
            for scope in self.inside(op):
                yield from scope.walk()
            if op.type not in _CALLS:
                yield self, op


def _functions(op: Any) -> list[str]:
    """The names of the functions that an operation calls; the body of a loop is the last."""
    if op.type in _CALLS:
        found = [op.get_attr("f")]
    elif op.type in _LOOPS:
        found = [op.get_attr("cond"), op.get_attr("body")]
    elif op.type in ("If", "StatelessIf"):
        found = [op.get_attr("then_branch"), op.get_attr("else_branch")]
    else:
        found = op.get_attr("branches") if op.type in _BRANCHES else []
    return [each.name for each in found]


@dataclass(frozen=True)
class Buffer:
    """The memory of a tensor; tensors that share memory have equal buffers.

    Attributes:
        place: the calls that lead to the operation that allocates it, and the tensor's name.
        type: of that operation.
        dtype: of the elements.
        shape: its dimensions.
        element_bytes: of one element.
        times: how many there are, one for each trip of a loop.
    """

    place: tuple[str, ...]
    type: str
    dtype: str
    shape: tuple[int, ...]
    element_bytes: int
    times: int

    @property
    def bytes(self) -> int:
        """Bytes of one."""
        return math.prod(self.shape) * self.element_bytes


def buffers_of(scope: Scope, tensor: Any) -> Iterator[Buffer]:
    """The memory that a tensor keeps; none for a variable, and for an input of the whole graph.

    The tensor lists that carry values from a loop to its gradient, and the optionals of a branch,
    are followed to the tensors in them.

    Raises:
        ConfigError: a shape is not fixed.
    """
    scope, tensor = _origin(scope, tensor)
    op = tensor.op
    if tensor.dtype.name == "variant":
        yield from _carried(scope, tensor)
        return
    is_given = op.type in _VARIABLES or (op.type == "Placeholder" and scope.outer is None)
    is_scratch = op.type == "FusedBatchNormV3" and tensor.value_index == _SCRATCH_OUTPUT
    if not is_given and not is_scratch and tensor.dtype.name not in ("resource", "string"):
        place = (*scope.path, tensor.name)
        dtype = tensor.dtype
        yield Buffer(place, op.type, dtype.name, dims(tensor), dtype.size, scope.times)


def _origin(scope: Scope, tensor: Any) -> tuple[Scope, Any]:
    """The tensor that allocates the memory, with its scope."""
    while True:
        tensor = _unaliased(tensor)
        op, call = tensor.op, scope.call
        if op.type in _CALLS:
            [scope] = scope.inside(op)
            tensor = scope.graph.outputs[tensor.value_index]
        elif op.type != "Placeholder" or scope.outer is None:
            return scope, tensor
        else:
            number = scope.input_number(tensor)
            if call.type in _LOOPS:
                # A trip begins with the result of the one before; what it passes on is invariant.
                body = scope.outer.inside(call)[-1]
                result = _unaliased(body.graph.outputs[number])
                if result.op.type != "Placeholder":
                    return body, result
                if body.input_number(result) != number:
                    return scope, tensor
            scope, tensor = scope.outer, call.inputs[number + (call.type in _BRANCHES)]


def _unaliased(tensor: Any) -> Any:
    while tensor.op.type in _ALIASES:
        is_several = tensor.op.type == "IdentityN"
        tensor = tensor.op.inputs[tensor.value_index if is_several else 0]
    return tensor


def _carried(scope: Scope, tensor: Any) -> Iterator[Buffer]:
    op = tensor.op
    if op.type == "TensorListPushBack":
        yield from buffers_of(scope, op.inputs[1])
    elif op.type == "OptionalFromValue":
        yield from buffers_of(scope, op.inputs[0])
    elif op.type in _BRANCHES | _LOOPS:
        for inner in scope.inside(op)[-1 if op.type in _LOOPS else 0 :]:
            yield from buffers_of(inner, inner.graph.outputs[tensor.value_index])


@dataclass
class Count:
    """What some operations compute.

    Attributes:
        work: how often each work is done, by type of operation and shapes.
        gathered: how often a gather reads a tensor of a type, a shape and a size of elements.
        unknown: number of operations of each type whose work is unknown.
    """

    work: Counter[tuple[str, str, Work]] = field(default_factory=Counter)
    gathered: Counter[tuple[str, tuple[int, ...], int]] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        """FLOPs of all."""
        return sum(work.flops * times for (_, _, work), times in self.work.items())

    def add(self, other: Count) -> None:
        """Adds what other operations compute."""
        self.work += other.work
        self.gathered += other.gathered
        self.unknown += other.unknown


def count(scope: Scope, ops: Iterable[Any]) -> Count:
    """What these operations compute, with all functions that they call.

    Of the branches of a condition the one with most FLOPs counts.

    Raises:
        ConfigError: a shape is not fixed, or `trips` does not have the name of a loop.
    """
    total = Count()
    for op in ops:
        inner = [count(each, each.operations) for each in scope.inside(op)]
        if op.type in _BRANCHES:
            inner = [max(inner, key=lambda branch: branch.flops)]
        for each in inner:
            total.add(each)
        if not inner:
            _add(total, op, scope.times)
    return total


def _add(total: Count, op: Any, times: int) -> None:
    work = work_of(op)
    if work is None:
        total.unknown[op.type] += times
    elif work.flops:
        factors = [str(each.shape) for each in op.inputs if each.dtype.is_floating]
        total.work[op.type, " x ".join(factors or [str(op.outputs[0].shape)]), work] += times
    if op.type in _GATHERS and op.outputs[0].dtype.is_floating:
        result = op.outputs[0]
        total.gathered[result.dtype.name, dims(result), result.dtype.size] += times
