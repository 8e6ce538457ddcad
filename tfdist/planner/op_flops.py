"""FLOPs of one operation of a TensorFlow graph, from its type and the shapes of its tensors.

A multiply-add is 2 FLOPs. The count is that of the definition: a convolution also multiplies the
zeros of its padding, and no algorithm with fewer multiplications (Winograd, Strassen) is assumed.

`tf.compat.v1.profiler` counts types that it does not know, such as Einsum, as 0. Here they are
reported: `work_of` returns None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tfdist.errors import ConfigError

PRODUCTS, ELEMENT_WISE, REDUCTIONS, NONE = "products", "element-wise", "reductions", "none"


@dataclass(frozen=True)
class Work:
    """FLOPs of an operation: `factor` times all `values`.

    Attributes:
        kind: PRODUCTS of matrices, ELEMENT_WISE, REDUCTIONS, or NONE for operations that only move
            data.
        factor: such as 2 for a multiply-add.
        values: sizes, each with the letter that a formula has for it.
    """

    kind: str
    factor: int = 0
    values: tuple[tuple[str, int], ...] = ()

    @property
    def flops(self) -> int:
        """The FLOPs."""
        return self.factor * math.prod(size for _, size in self.values)

    @property
    def formula(self) -> str:
        """Such as "2 e k"."""
        return " ".join([str(self.factor), *(letter for letter, _ in self.values)])


def work_of(op: Any) -> Work | None:
    """The work of a `tf.Operation`; None if its type is unknown and it computes with numbers.

    Arithmetic on integers and booleans is that of shapes and indices, and no work.

    Raises:
        ConfigError: the work depends on a shape that is not fixed.
    """
    if op.type in _WORK and not _has(op, "is_complex"):
        return _WORK[op.type](op)
    if op.type in _NO_ARITHMETIC or not any(_has(op, kind) for kind in _NUMBERS):
        return Work(NONE)
    if _has(op, "is_complex") or _has(op, "is_quantized"):
        return None
    if op.type in _FIRST_INPUT:
        kind, factor = _FIRST_INPUT[op.type]
        return Work(kind, factor, (("e", elements(op.inputs[0])),))
    if op.type == "AddN":
        return Work(ELEMENT_WISE, len(op.inputs) - 1, (("e", elements(op.outputs[0])),))
    if op.type in _ELEMENT_WISE:
        floats = [each for each in op.inputs if each.dtype.is_floating]
        most = max(elements(each) for each in [*floats, *op.outputs])
        return Work(ELEMENT_WISE, _ELEMENT_WISE[op.type], (("e", most),))
    return None


def dims(tensor: Any) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        ConfigError: it is not fixed.
    """
    if not tensor.shape.is_fully_defined():
        where = f"{tensor.name} of the operation {tensor.op.type} has {tensor.shape}"
        rule = (
            f"must fix all shapes, but {where}: give a fixed input_spec, and functions without an "
        )
        rule += "input_signature of their own"
        raise ConfigError("input_spec", str(tensor.shape), rule)
    return tuple(tensor.shape.as_list())


def elements(tensor: Any) -> int:
    """Number of elements of a tensor."""
    return math.prod(dims(tensor))


def einsum(equation: str, shapes: Sequence[Sequence[int]]) -> Work:
    """The work of an Einsum of one or two operands.

    An index that one operand alone has, and not the result, is summed first. All other indices are
    the loops of one product: of multiply-adds if an index is summed, else of multiplications.
    """
    letters, result = _letters(equation, [len(shape) for shape in shapes])
    size: dict[str, int] = {}
    for names, shape in zip(letters, shapes, strict=True):
        for name, length in zip(names, shape, strict=True):
            size[name] = max(length, size.get(name, 1))  # a length of 1 is broadcast
    if len(letters) == 1:
        is_sum = set(letters[0]) != set(result)
        return _loops(REDUCTIONS, 1, size, size) if is_sum else Work(NONE)
    both = [name for name in size if name in result or all(name in each for each in letters)]
    return _loops(PRODUCTS, 1 if set(both) <= set(result) else 2, both, size)


def _loops(kind: str, factor: int, names: Any, size: dict[str, int]) -> Work:
    return Work(kind, factor, tuple((name, size[name]) for name in names))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The names of the axes of each operand and of the result; "..." becomes "...2", "...1"."""
    operands, _, result = equation.replace(" ", "").partition("->")
    terms = operands.split(",")
    lengths = [
        rank - len(term.replace("...", "")) if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]

    def names(term: str, length: int) -> list[str]:
        before, dots, after = term.partition("...")
        # Broadcast axes are aligned at their end, as those of numpy are.
        inner = [f"...{number}" for number in range(length, 0, -1)] if dots else []
        return [*before, *inner, *after]

    found = [names(term, length) for term, length in zip(terms, lengths, strict=True)]
    return found, names(result, max(lengths))


def _einsum(op: Any) -> Work:
    equation = op.get_attr("equation").decode("ascii")
    return einsum(equation, [dims(each) for each in op.inputs])


def _matmul(transposed: str) -> Callable[[Any], Work]:
    """Of [m, k] and [k, n]; `transposed` names the attribute of a first operand [k, m]."""

    def work(op: Any) -> Work:
        *_, k = dims(op.inputs[0])
        if op.get_attr(transposed):
            k = dims(op.inputs[0])[-2]
        *batch, m, n = dims(op.outputs[0])
        values = (("b", math.prod(batch)),) if batch else ()
        return Work(PRODUCTS, 2, (*values, ("m", m), ("k", k), ("n", n)))

    return work


def _convolution(op: Any) -> Work:
    """A multiply-add for each element of the result and each weight that it depends on.

    Both gradients of a convolution have its loops, and so its work. A filter of grouped channels
    has only the channels of one group.
    """
    if "BackpropInput" in op.type:
        result, weights = op.inputs[2], op.inputs[1]
    elif "BackpropFilter" in op.type:
        result, weights = op.inputs[2], op.outputs[0]
    else:
        result, weights = op.outputs[0], op.inputs[1]
    # A depthwise convolution sums over the window, any other one also over the channels.
    summed = dims(weights)[:2] if op.type.startswith("Depthwise") else dims(weights)[:-1]
    return Work(PRODUCTS, 2, (("e", elements(result)), ("k", math.prod(summed))))


def _pool(op: Any) -> Work:
    """An addition or a comparison for each element of a window, in both directions."""
    windows = op.outputs[0] if not op.type.endswith("Grad") else op.inputs[-1]
    values = (("e", elements(windows)), ("k", math.prod(op.get_attr("ksize"))))
    return Work(REDUCTIONS, 1, values)


_CONVOLUTIONS = """
    Conv Conv2D Conv2DBackpropInput Conv2DBackpropInputV2 Conv2DBackpropFilter
    Conv2DBackpropFilterV2 Conv3D Conv3DBackpropInput Conv3DBackpropInputV2 Conv3DBackpropFilter
    Conv3DBackpropFilterV2 DepthwiseConv2dNative DepthwiseConv2dNativeBackpropInput
    DepthwiseConv2dNativeBackpropFilter
    """
_POOLS = """
    AvgPool AvgPool3D MaxPool MaxPool3D AvgPoolGrad AvgPool3DGrad MaxPoolGrad MaxPool3DGrad
    """
_WORK: dict[str, Callable[[Any], Work]] = {
    "Einsum": _einsum,
    **dict.fromkeys(("MatMul", "SparseMatMul"), _matmul("transpose_a")),
    **dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matmul("adj_x")),
    **dict.fromkeys(_CONVOLUTIONS.split(), _convolution),
    **dict.fromkeys(_POOLS.split(), _pool),
}

_SUMS = """
    Sum Mean Max Min Prod ArgMax ArgMin BiasAddGrad SegmentSum SegmentSumV2 SegmentMean
    UnsortedSegmentSum
    """
_NORMS = "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3"
_NORM_GRADIENTS = "FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3"
# FLOPs for each element of the first input.
_FIRST_INPUT = {
    **dict.fromkeys(_SUMS.split(), (REDUCTIONS, 1)),
    **dict.fromkeys(("EuclideanNorm", "L2Loss"), (REDUCTIONS, 2)),  # a square and an addition
    # Mean 1, variance 3, and (x - mean) scale + offset.
    **dict.fromkeys(_NORMS.split(), (ELEMENT_WISE, 7)),
    # x again 2, the sums of dy and dy x 3, and scale (dy - mean - x mean) 4.
    **dict.fromkeys(_NORM_GRADIENTS.split(), (ELEMENT_WISE, 9)),
}

# FLOPs for each element of the largest tensor. A function of one number is 1, whatever it costs.
_FUNCTIONS = """
    Abs Add AddV2 Sub Mul MulNoNan RealDiv Div DivNoNan FloorDiv FloorMod Mod Maximum Minimum
    Pow Neg Sign Square Sqrt Rsqrt Reciprocal Inv Exp Expm1 Log Log1p Sin Cos Tan Asin Acos Atan
    Atan2 Sinh Cosh Tanh Asinh Acosh Atanh Sigmoid Softplus Softsign Erf Erfc Erfinv Ndtri
    Lgamma Digamma Floor Ceil Round Rint Relu Relu6 LeakyRelu Elu Selu ClipByValue Xlogy Xlog1py
    Xdivy Equal NotEqual Less LessEqual Greater GreaterEqual ApproximateEqual IsNan IsInf
    IsFinite BiasAdd BiasAddV1 Cumsum Cumprod ReluGrad Relu6Grad LeakyReluGrad EluGrad SeluGrad
    SoftplusGrad SoftsignGrad AssignAddVariableOp AssignSubVariableOp ResourceScatterAdd
    ResourceScatterSub TensorScatterAdd TensorScatterSub RandomUniform RandomStandardNormal
    TruncatedNormal StatelessRandomUniform StatelessRandomUniformV2 StatelessRandomNormal
    StatelessRandomNormalV2 StatelessTruncatedNormal StatelessTruncatedNormalV2 StatefulUniform
    StatefulStandardNormalV2
    """
_ELEMENT_WISE = {
    **dict.fromkeys(_FUNCTIONS.split(), 1),
    "SquaredDifference": 2,
    "SqrtGrad": 2,  # dy / (2 y)
    **dict.fromkeys(("TanhGrad", "SigmoidGrad", "ReciprocalGrad", "InvGrad"), 3),  # dy y (1 - y)
    "RsqrtGrad": 4,  # -dy y^3 / 2
    **dict.fromkeys(("Softmax", "LogSoftmax"), 5),  # max, subtract, exp, sum, divide or subtract
    "SparseSoftmaxCrossEntropyWithLogits": 6,  # the same, and the gradient subtracts the label
    "SoftmaxCrossEntropyWithLogits": 8,  # and multiplies by the labels and sums
}

# These copy, select, convert, fill or name data.
_MOVEMENT = """
    Identity IdentityN Reshape Transpose ConjugateTranspose Concat ConcatV2 Pack Unpack Split
    SplitV Slice StridedSlice StridedSliceGrad Pad PadV2 MirrorPad MirrorPadGrad Tile
    BroadcastTo ExpandDims Squeeze Gather GatherV2 GatherNd ResourceGather ResourceGatherNd
    ScatterNd TensorScatterUpdate ResourceScatterUpdate TensorStridedSliceUpdate Fill ZerosLike
    OnesLike Const Placeholder PlaceholderWithDefault Shape ShapeN Size Rank Cast Bitcast Select
    SelectV2 Where OneHot Reverse ReverseV2 ReverseSequence Roll InvertPermutation SpaceToBatch
    SpaceToBatchND BatchToSpace BatchToSpaceND DepthToSpace SpaceToDepth ExtractImagePatches
    StopGradient PreventGradient CheckNumerics CheckNumericsV2 EnsureShape MatrixBandPart Diag
    DiagPart MatrixDiag MatrixDiagV2 MatrixDiagV3 MatrixDiagPart MatrixDiagPartV2
    MatrixDiagPartV3 MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 ReadVariableOp VarHandleOp
    VariableV2 AssignVariableOp Assert Print PrintV2 StringFormat NoOp Range LinSpace Snapshot
    DynamicStitch ParallelDynamicStitch DynamicPartition Unique UniqueV2 TensorListReserve
    EmptyTensorList TensorListSetItem TensorListGetItem TensorListStack TensorListFromTensor
    TensorListPushBack TensorListPopBack TensorListLength TensorListElementShape
    TensorListResize TensorListConcat TensorListConcatV2 TensorListGather TensorListSplit
    OptionalFromValue OptionalGetValue OptionalNone OptionalHasValue
    """
_NO_ARITHMETIC = frozenset(_MOVEMENT.split())
_NUMBERS = ("is_floating", "is_complex", "is_quantized")


def _has(op: Any, kind: str) -> bool:
    return any(getattr(each.dtype, kind) for each in [*op.inputs, *op.outputs])
