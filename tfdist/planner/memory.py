"""The memory of one training step on one device, by what it is for.

Letters in the formulas: those of `parameters` and `activations`, B bytes of one number, D devices
that share it, L layers of the device, i micro-batches in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from tfdist.errors import ConfigError, checked_choice, checked_integer
from tfdist.planner import activations, parameters
from tfdist.planner.activations import TENSORFLOW_SOURCE
from tfdist.planner.quantity import Quantity, plain
from tfdist.planner.stages import Stage, check_division, largest_stages, stage_of
from tfdist.planner.training import SLOTS, Training
from tfdist.planner.transformer import Transformer

ZERO_SOURCE = "arXiv 1910.02054, section 5"
# Bytes of a weight and of its gradient. Mixed precision keeps weights in fp16, and a copy in fp32
# with the slots. Keras does the reverse: it keeps fp32 variables, casts those of the layers in each
# step, and keeps the copies until the backward pass; its embedding and head stay in fp32.
WEIGHT = {"fp32": 4, "mixed": 2, "mixed, fp32 gradients": 2, "keras mixed_float16": 4}
GRADIENT = {"fp32": 4, "mixed": 2, "mixed, fp32 gradients": 4, "keras mixed_float16": 4}
# Share of activations and logits for temporary tensors.
ALLOWANCE = Fraction(1, 20)
ALLOWANCE_SOURCE = "Megatron-LM, theoretical_memory_usage.py"
CONTEXT = 1573 * 2**20  # of CUDA and its kernels, on an A100
BIGSCIENCE = "BigScience, train/tr11-176B-ml/chronicles-prequel.md"
# In BigScience's runs nvidia-smi showed 1.20 to 1.51 times the sum of the parts: allocators keep
# gaps between tensors, and messages need buffers.
MOST = 1.55


def training_memory(
    model: Transformer,
    training: Training,
    *,
    framework: str = "megatron",
    stage: int | None = None,
) -> Quantity:
    """Bytes that a training step needs on the device that needs most.

    The parts are weights, gradients, slots, activations, logits and workspace; each has parts of
    its own. With a pipeline the name says which stage it is. The interval goes up to 1.55 times the
    sum, which allocators and buffers of messages have been seen to need.

    Args:
        model: the whole model.
        training: its batch, precision and division.
        framework: "megatron" fuses the operations of GELU and of norms; "tensorflow" keeps every
            piece of them.
        stage: place in the pipeline, from 0; None for the one that needs most.

    Raises:
        ConfigError: an argument is wrong, or the model cannot be divided like this.
    """
    checked_choice("framework", framework, activations.FRAMEWORKS)
    check_division(model, training)
    if stage is None:
        stages = largest_stages(model, training)
    else:
        stages = [
            stage_of(model, training, checked_integer("stage", stage, 0, training.pipeline - 1))
        ]
    return _largest(_memory(each, training, framework) for each in stages)


def bytes_per_parameter(training: Training) -> Quantity:
    """Bytes of weights, gradients and slots for each parameter that a device trains.

    Stages of ZeRO divide them by `data`. Multiply them by the parameters of a whole model for
    training without tensor and pipeline parallelism.

    Raises:
        ConfigError: `training` is of another type.
    """
    if not isinstance(training, Training):
        raise ConfigError("training", training, "must be a Training")
    one = [(Quantity("parameter", 1, "parameters", "1"), training.data)]
    parts = [_weights(one, training), _gradients(one, training), _slots(one, training)]
    return Quantity.sum_of("bytes of a parameter", "bytes", parts, ZERO_SOURCE)


# Parameters of a device, each with the number of devices that hold the same ones.
Held = Sequence[tuple[Quantity, int]]


def _memory(stage: Stage, training: Training, framework: str) -> Quantity:
    held = _held(stage, training)
    kept = _activations(stage, training, framework)
    logits = activations.logits(stage.model, training) if stage.is_last else []
    parts = [
        _weights(held, training),
        _gradients(held, training),
        _slots(held, training),
        kept,
        Quantity.sum_of("logits", "bytes", logits),
        _workspace(stage, training, framework, [kept, *logits]),
    ]
    where = f", stage {stage.index} of the pipeline" if training.pipeline > 1 else ""
    total = Quantity.sum_of(f"training memory{where}", "bytes", parts, BIGSCIENCE)
    return replace(total, interval=(total.value, MOST * total.value))


def _held(stage: Stage, training: Training) -> Held:
    part = stage.model
    found = [parameters.embedding(part)] if stage.is_first else []
    found += [parameters.attention(part), parameters.mlp(part)]
    routed: list[Quantity] = []
    moe = part.experts
    if moe is not None:
        alone = replace(part, experts=replace(moe, shared=0, shared_mlp=0))
        routed = parameters.experts(alone, stage.held_experts)[:1]
        shared, router = parameters.experts(part, 0)
        found += [replace(shared, name="shared experts"), router]
    first, last = part.embedding_norm and stage.is_first, part.final_norm and stage.is_last
    found.append(parameters.norms(replace(part, embedding_norm=first, final_norm=last)))
    if stage.is_last:
        found.append(parameters.head(replace(part, tied=part.tied and stage.is_first)))
    held = [(each, training.data) for each in found]
    held += [(each, training.data // training.expert) for each in routed]
    return [(each, devices) for each, devices in held if each.value]


def _weights(held: Held, training: Training) -> Quantity:
    parts = list(_states(held, WEIGHT[training.precision], training.zero >= 3))
    if training.precision == "keras mixed_float16":
        layers = [each for each in held if each[0].name not in ("embedding", "norms", "head")]
        copies = [replace(each, source=TENSORFLOW_SOURCE) for each in _states(layers, 2, False)]
        parts.append(Quantity.sum_of("copies in fp16", "bytes", copies))
    return Quantity.sum_of("weights", "bytes", parts, ZERO_SOURCE)


def _gradients(held: Held, training: Training) -> Quantity:
    parts = list(_states(held, GRADIENT[training.precision], training.zero >= 2))
    return Quantity.sum_of("gradients", "bytes", parts, ZERO_SOURCE)


def _slots(held: Held, training: Training) -> Quantity:
    names = SLOTS[training.optimizer]
    if training.precision.startswith("mixed"):
        names = ("weights in fp32", *names)
    is_shared = training.zero >= 1
    parts = [Quantity.sum_of(name, "bytes", list(_states(held, 4, is_shared))) for name in names]
    return Quantity.sum_of("slots", "bytes", parts, ZERO_SOURCE)


def _states(held: Held, size: int, is_shared: bool) -> Iterable[Quantity]:
    """`size` bytes for each parameter, which the devices that hold the same ones may share."""
    for count, devices in held:
        values, formula = {"B": size, **count.values}, f"B ({count.formula})"
        number = Fraction(size * int(count.value))
        if is_shared and devices > 1:
            values, formula = {**values, "D": devices}, f"{formula} / D"
            number /= devices
        yield Quantity(count.name, plain(number), "bytes", formula, values, count.source)


def _activations(stage: Stage, training: Training, framework: str) -> Quantity:
    found = []
    for count, layer in stage.kinds_of_layers():
        operations = activations.layer_operations(layer, training, framework)
        kept = [_times(each, count, stage.in_flight) for each in operations]
        name = "layers" if layer.experts is None else "layers with experts"
        found.append(Quantity.sum_of(name, "bytes", kept))
    if stage.is_first:
        embedding = activations.embedding_operations(stage.model, training)
        # Interleaved stages keep the embedding's tensors for whole micro-batches.
        whole = Fraction(min(training.micro_batches, training.pipeline))
        found += [_times(each, 1, whole) for each in embedding]
    if stage.is_last:
        found += activations.head_operations(stage.model, training)
    return Quantity.sum_of("activations", "bytes", found)


def _times(kept: Quantity, layers: int, in_flight: Fraction) -> Quantity:
    """What so many layers keep of so many micro-batches."""
    factor, values, formula = layers * in_flight, dict(kept.values), kept.formula
    if layers > 1:
        values, formula = {"L": layers, **values}, f"L {formula}"
    if in_flight != 1:
        values, formula = {"i": plain(in_flight), **values}, f"i {formula}"
    number = plain(Fraction(kept.value) * factor)
    interval = kept.interval
    if interval is not None:
        interval = (interval[0] * float(factor), interval[1] * float(factor))
    return replace(kept, value=number, values=values, formula=formula, interval=interval)


def _workspace(
    stage: Stage, training: Training, framework: str, kept: Sequence[Quantity]
) -> Quantity:
    """What exists for a moment, such as the layer that is computed, and allowances."""
    layers = [layer for _, layer in stage.kinds_of_layers()]
    held = [
        _held(replace(stage, model=one, is_first=False, is_last=False), training) for one in layers
    ]
    found = []
    if training.zero >= 3:
        size = WEIGHT[training.precision]
        found.append(_largest(_gathered("weights of a layer, gathered", one, size) for one in held))
    if training.zero >= 2:
        size, name = GRADIENT[training.precision], "gradients of a layer, not yet summed"
        found.append(_largest(_gathered(name, one, size) for one in held))
    if training.recomputation != "none":
        found.append(_largest(_recomputed(one, training, framework) for one in layers))
    total = sum(Fraction(each.value) for each in kept)
    values = {"n": plain(total), "r": float(ALLOWANCE)}
    allowance = plain(total * ALLOWANCE)
    found.append(Quantity("temporary tensors", allowance, "bytes", "r n", values, ALLOWANCE_SOURCE))
    found.append(Quantity("context of the device", CONTEXT, "bytes", source=BIGSCIENCE))
    return Quantity.sum_of("workspace", "bytes", found)


def _largest(quantities: Iterable[Quantity]) -> Quantity:
    return max(quantities, key=lambda each: each.value)


def _gathered(name: str, held: Held, size: int) -> Quantity:
    """What other devices hold of a layer, of which each has an equal part."""
    whole = sum(int(count.value) for count, _ in held)
    own = sum(Fraction(int(count.value), devices) for count, devices in held)
    values = {"B": size, "n": whole, "o": plain(own)}
    return Quantity(name, plain(size * (whole - own)), "bytes", "B (n - o)", values)


def _recomputed(layer: Transformer, training: Training, framework: str) -> Quantity:
    """What one layer keeps once it is computed again, beyond what it has kept all the time."""

    def kept(training: Training) -> Fraction:
        operations = activations.layer_operations(layer, training, framework)
        return sum((Fraction(each.value) for each in operations), Fraction(0))

    whole, always = kept(replace(training, recomputation="none")), kept(training)
    values = {"n": plain(whole), "o": plain(always)}
    return Quantity("layer that is recomputed", plain(whole - always), "bytes", "n - o", values)
