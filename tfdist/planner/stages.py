"""What one device holds of a model: a smaller Transformer, and how many micro-batches at a time.

Tensor parallelism divides the heads, the MLP's width and the vocabulary; pipeline parallelism
divides the layers. Nothing else changes, so that all formulas for a model hold for a device too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from tfdist.errors import ConfigError
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer


@dataclass(frozen=True)
class Stage:
    """One device of a pipeline.

    Attributes:
        index: its place in the pipeline, from 0.
        model: its layers, with its part of each matrix. `model.experts.count` is that of a whole
            layer, as the router needs it.
        held_experts: experts of a layer that are on the device.
        is_first: whether it has the embedding.
        is_last: whether it has the output head.
        in_flight: micro-batches whose activations it keeps at a time. Interleaved stages keep some
            of them for a part of their layers only, which makes it a fraction.
    """

    index: int
    model: Transformer
    held_experts: int
    is_first: bool
    is_last: bool
    in_flight: Fraction

    def kinds_of_layers(self) -> list[tuple[int, Transformer]]:
        """Dense layers and layers with experts: how many there are, and one of them."""
        part, moe = self.model, self.model.experts
        kinds = [(part.layers - part.expert_layers, replace(part, layers=1, experts=None))]
        if moe is not None:
            one = replace(part, layers=1, experts=replace(moe, dense_layers=0))
            kinds.append((part.expert_layers, one))
        return [(count, layer) for count, layer in kinds if count]


def shard(model: Transformer, tensor: int) -> Transformer:
    """The part of each matrix that one of `tensor` devices holds.

    Where a width does not divide, it is that of the fullest device. Keys and values of a group of
    heads stay whole: with more devices than groups, several devices hold the same.

    Raises:
        ConfigError: the heads cannot be divided among so many devices.
    """
    if model.heads % tensor:
        raise ConfigError("tensor", tensor, f"must divide heads ({model.heads})")
    groups = model.kv_heads
    if groups % tensor and tensor % groups:
        rule = f"must divide kv_heads ({groups}), or be a multiple of it"
        raise ConfigError("tensor", tensor, rule)
    moe = model.experts
    if moe is not None:
        width = moe.mlp or model.mlp
        shared = moe.shared_mlp or moe.shared * width
        moe = replace(moe, mlp=_ceil(width, tensor), shared_mlp=_ceil(shared, tensor))
    return replace(
        model,
        heads=model.heads // tensor,
        kv_heads=max(1, groups // tensor),
        mlp=_ceil(model.mlp, tensor),
        vocabulary=_ceil(model.vocabulary, tensor),
        experts=moe,
    )


def stage_of(model: Transformer, training: Training, index: int) -> Stage:
    """The device at this place of the pipeline, after `check_division`."""
    pipeline, interleaved = training.pipeline, training.interleaved
    part = shard(model, training.tensor)
    dense_layers = 0 if model.experts is None else model.experts.dense_layers
    layers, dense = _layers(model.layers, dense_layers, training, index)
    experts = part.experts
    if experts is not None:
        experts = replace(experts, dense_layers=dense)
    later = pipeline - 1 - index
    # Forward passes of its groups of layers before the first backward pass, in the schedule 1F1B.
    passes = 2 * later + (interleaved - 1) * pipeline + 1 if interleaved > 1 else later + 1
    return Stage(
        index,
        replace(part, layers=layers, experts=experts),
        0 if experts is None else experts.count // training.expert,
        index == 0,
        later == 0,
        Fraction(min(passes, training.micro_batches * interleaved), interleaved),
    )


def largest_stages(model: Transformer, training: Training) -> list[Stage]:
    """Stages of which one needs most memory of all; after `check_division`.

    A stage keeps no more micro-batches than the one before it. So it can need more only if it has
    the output head, or more layers of one kind: that is where the dense layers of a model with
    experts end.
    """
    pipeline = training.pipeline
    size, rest = divmod(model.layers, pipeline * training.interleaved)
    dense = 0 if model.experts is None else model.experts.dense_layers
    mixed = _group_of(dense, size, rest) % pipeline
    indices = sorted({0, mixed, mixed + 1, pipeline - 1})
    return [stage_of(model, training, index) for index in indices if index < pipeline]


def check_division(model: Transformer, training: Training) -> None:
    """Checks that the model can be divided as `training` says.

    Raises:
        ConfigError: it cannot, or an argument is of another type.
    """
    if not isinstance(model, Transformer):
        raise ConfigError("model", model, "must be a Transformer")
    if not isinstance(training, Training):
        raise ConfigError("training", training, "must be a Training")
    most = model.layers // training.interleaved
    if training.pipeline > most:
        of = " / interleaved" if training.interleaved > 1 else ""
        rule = f"must be at most layers{of}, which is {most}"
        raise ConfigError("pipeline", training.pipeline, rule)
    if training.expert > 1:
        count = 0 if model.experts is None else model.experts.count
        if not count or count % training.expert:
            rule = f"must divide experts.count ({count})" if count else "must be 1 without experts"
            raise ConfigError("expert", training.expert, rule)


def _layers(layers: int, dense: int, training: Training, index: int) -> tuple[int, int]:
    """How many layers a stage has, and how many of them are dense: the model's first ones.

    The layers form `pipeline * interleaved` groups, which go to the devices in turn. The first
    groups have one layer more if the layers do not divide.
    """
    pipeline, interleaved = training.pipeline, training.interleaved
    size, rest = divmod(layers, pipeline * interleaved)

    def groups_before(group: int) -> int:
        return (group - index + pipeline - 1) // pipeline  # of this device

    mixed = _group_of(dense, size, rest)
    own = interleaved * size + groups_before(rest)
    own_dense = groups_before(mixed) * size + groups_before(min(mixed, rest))
    if mixed % pipeline == index:
        own_dense += dense - (mixed * size + min(mixed, rest))
    return own, own_dense


def _group_of(layer: int, size: int, rest: int) -> int:
    """The group of layers that this layer is in, if the first `rest` groups have one more."""
    longer = rest * (size + 1)
    return layer // (size + 1) if layer < longer else rest + (layer - longer) // size


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
