"""The bytes that a device sends in a training step, from the shape of the model and its training.

Each part is the most that any device sends for that purpose. The ends of a pipeline hold the
embedding and the head, and its middle sends in both directions, so no single device need send all.

Letters in the formulas: n layers of a device, s tokens of a sequence, b sequences of a micro-batch,
m micro-batches, h hidden, a bytes of an activation, g of a gradient, w of a weight; t, p, d and e
devices of the tensor, pipeline, data and expert groups.
"""

from __future__ import annotations

from fractions import Fraction

from tfdist.errors import ConfigError
from tfdist.planner.devices import Device
from tfdist.planner.parameters import attention, embedding, experts, head, mlp
from tfdist.planner.quantity import Quantity, plain
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer

MEGATRON = "arXiv 2104.04473"
ZERO = "arXiv 1910.02054, section 7"
SEQUENCE_PARALLEL = "arXiv 2205.05198, section 4.2"
GSHARD = "arXiv 2006.16668"

# Of a weight, a gradient and an activation.
_BYTES = {
    "fp32": (4, 4, 4),
    "mixed": (2, 2, 2),
    "mixed, fp32 gradients": (2, 4, 2),
    "keras mixed_float16": (4, 4, 2),
}


def step_traffic(model: Transformer, training: Training) -> Quantity:
    """Bytes that a device sends in a step, with the parts data, tensor, pipeline and expert.

    It receives as many.

    Raises:
        ConfigError: there are more stages than layers, or experts do not divide among the devices.
    """
    stages = training.pipeline * training.interleaved
    if stages > model.layers:
        rule = f"times interleaved must be at most layers ({model.layers})"
        raise ConfigError("pipeline", training.pipeline, rule)
    count = 1 if model.experts is None else model.experts.count
    if count % training.expert:
        rule = f"must divide the experts of a layer ({count})"
        raise ConfigError("expert", training.expert, rule)
    parts = [each(model, training) for each in (_data, _tensor, _pipeline, _expert)]
    return Quantity.sum_of("traffic", "bytes", parts)


def traffic_seconds(model: Transformer, training: Training, device: Device) -> Quantity:
    """Seconds that the traffic of a step takes, if nothing overlaps and no message has a latency.

    Devices are numbered so that those of a tensor group are neighbours, then those of an expert
    group, then those of a data group; those of a pipeline are farthest apart. A group that lies on
    several machines works in the order of `hierarchical_all_reduce`.

    Raises:
        ConfigError: as `step_traffic`.
    """
    t, d, e = training.tensor, training.data, training.expert
    # Size of each group, and the distance of its members.
    groups = {
        **{"tensor": (t, 1), "expert": (e, t), "pipeline": (training.pipeline, t * d)},
        **{"gradients": (d, t), "expert gradients": (d // e, t * e)},
    }
    parts = []
    for part in step_traffic(model, training).parts:
        if part.name == "data":
            terms = [_on_links(each, *groups[each.name], device) for each in part.parts]
            parts.append(Quantity.sum_of("data", "seconds", terms))
        else:
            parts.append(_on_links(part, *groups[part.name], device))
    return Quantity.sum_of("traffic", "seconds", parts)


def _on_links(part: Quantity, size: int, distance: int, device: Device) -> Quantity:
    """The seconds of a part of the traffic, for a group of this size."""
    k = min(size, max(1, device.per_machine // distance))
    if part.name == "pipeline":
        outside = Fraction(k < size)
    elif part.name == "expert":
        outside = Fraction(size - k, size - 1)
    else:
        machines = -(-size // k)
        inside, between = Fraction(k - 1, k), Fraction(machines - 1, machines * k)
        outside = between / (inside + between)
    value = part.value * (
        float(1 - outside) / device.link_bandwidth + float(outside) / device.network_bandwidth
    )
    values = {
        **{"N": part.value, "o": float(outside)},
        **{"B": device.link_bandwidth, "b": device.network_bandwidth},
    }
    return Quantity(part.name, value, "seconds", "N ((1 - o) / B + o / b)", values, device.source)


def pipeline_bubble(training: Training) -> Quantity:
    """Time in which a device of the pipeline idles, as a fraction of the time in which it works."""
    p, v, m = training.pipeline, training.interleaved, training.micro_batches
    values = {"p": p, "v": v, "m": m}
    value = plain(Fraction(p - 1, v * m))
    source = f"{MEGATRON}, section 2.2"
    return Quantity("bubble", value, "of the ideal time", "(p - 1) / (v m)", values, source)


def layers_of_stage(model: Transformer, training: Training) -> int:
    """Layers of the device of the pipeline that has the most."""
    stages = training.pipeline * training.interleaved
    return min(model.layers, -(-model.layers // stages) * training.interleaved)


def _data(model: Transformer, training: Training) -> Quantity:
    """The gradients, and with ZeRO the weights, between the groups that share the batch.

    The device is one with as many layers with experts as there can be. Devices that share the
    experts hold different ones, so an expert has fewer copies.
    """
    layers = layers_of_stage(model, training)
    with_experts = min(layers, model.expert_layers)
    count = Fraction(layers, model.layers) * _count(attention(model))
    count += layers * model.norms_per_layer * _norm(model)
    if layers > with_experts:
        own_mlps = model.layers - model.expert_layers
        count += Fraction(layers - with_experts, own_mlps) * _count(mlp(model))
    routed = Fraction(0)
    if model.experts is not None and with_experts:
        share = Fraction(with_experts, model.expert_layers)
        total, router = experts(model)
        shared, _ = experts(model, used=0)
        count += share * (_count(router) + _count(shared))
        routed = share * (_count(total) - _count(shared)) / training.expert
    count += _ends(model, training)
    copies = training.data // training.expert
    parts = [
        _exchanged("gradients", count, training.data, training),
        _exchanged("expert gradients", routed, copies, training),
    ]
    return Quantity.sum_of("data", "bytes", parts)


def _exchanged(name: str, count: Fraction, copies: int, training: Training) -> Quantity:
    """What a device sends for so many parameters, of which there are so many copies."""
    w, g, _ = _BYTES[training.precision]
    m = training.micro_batches
    # Stages 2 and 3 keep no whole gradient, so every micro-batch reduces its own. Stage 3 gathers
    # the weights for the forward pass and again for the backward pass.
    formula, each = (
        ("2 g", 2 * g),
        ("(g + w)", g + w),
        ("(m g + w)", m * g + w),
        ("m (g + 2 w)", m * (g + 2 * w)),
    )[training.zero]
    held = count / training.tensor
    value = plain(each * held * (copies - 1) / copies)
    values = {"g": g, "w": w, "m": m, "P": plain(held), "c": copies}
    return Quantity(name, value, "bytes", f"{formula} P (c - 1) / c", values, ZERO)


def _ends(model: Transformer, training: Training) -> int:
    """Parameters that the first or the last stage has in addition to its layers."""
    first = _count(embedding(model)) + model.embedding_norm * _norm(model)
    last = _count(head(model)) + model.final_norm * _norm(model)
    if training.pipeline == 1:
        return first + last
    copy = model.vocabulary * model.hidden if model.tied else 0
    return max(first, last + copy)


def _norm(model: Transformer) -> int:
    """Parameters of one norm."""
    return model.hidden * (2 if model.norm == "layer" else 1)


def _count(parameters: Quantity) -> int:
    return int(parameters.value)  # always whole


def _tensor(model: Transformer, training: Training) -> Quantity:
    """The activations between the devices that share each matrix.

    After attention and after the MLP all devices need the sum of what each has: an all-reduce, so
    two passes of (t - 1) / t of a tensor of [s, b, h]. The backward pass does the same before them.
    With sequence parallelism a reduce-scatter and an all-gather are two passes as well, and one
    more gathers the input again for the gradient of the weights.
    """
    again = int(training.sequence_parallel)
    blocks = 1 if model.parallel_block else 2
    forwards = 2 if training.recomputation == "full" else 1
    layers = layers_of_stage(model, training)
    passes = layers * blocks * (2 * forwards + 2 + again)
    first, last = 2, 2 + again  # of the embedding and of the head
    at_ends = first + last if training.pipeline == 1 else last
    source = SEQUENCE_PARALLEL if again else f"{MEGATRON}, section 3.2"
    t = training.tensor
    nbytes, values = _activation(model, training)
    parts = []
    for name, count in (("layers", passes), ("embedding and head", at_ends)):
        value = plain(Fraction(count * training.micro_batches * nbytes * (t - 1), t))
        values = {**values, "c": count, "t": t}
        formula = "c m s b h a (t - 1) / t"
        parts.append(Quantity(name, value, "bytes", formula, values, source))
    return Quantity.sum_of("tensor", "bytes", parts)


def _pipeline(model: Transformer, training: Training) -> Quantity:
    """Activations to the next stage, and their gradients to the stage before.

    A tied embedding is on the first and on the last device, which add their gradients.
    """
    p, v, t = training.pipeline, training.interleaved, training.tensor
    # A device of the middle sends both ways from each of its v stages. The outermost send one less.
    sends = 0 if p == 1 else 2 * v - 1 if p == 2 else 2 * v
    shards = t if training.sequence_parallel else 1
    nbytes, values = _activation(model, training)
    value = plain(Fraction(sends * training.micro_batches * nbytes, shards))
    values = {**values, "c": sends, "k": shards}
    source = f"{MEGATRON}, sections 2.2 and 3.2"
    stages = Quantity("activations", value, "bytes", "c m s b h a / k", values, source)
    _, gradient, _ = _BYTES[training.precision]
    count = model.vocabulary * model.hidden if model.tied and p > 1 else 0
    values = {"V": model.vocabulary, "h": model.hidden, "g": gradient, "t": t}
    value = plain(Fraction(count * gradient, t))
    source = "all-reduce of two devices"
    tied = Quantity("tied embedding", value, "bytes", "V h g / t", values, source)
    return Quantity.sum_of("pipeline", "bytes", [stages, tied])


def _expert(model: Transformer, training: Training) -> Quantity:
    """Tokens to the devices of their experts and back, in both passes of each layer.

    A device has a slice of each of its experts, so every device of a tensor group sends its tokens.
    The router is taken to spread them evenly.
    """
    e = training.expert
    active = 0 if model.experts is None else model.experts.active
    layers = min(layers_of_stage(model, training), model.expert_layers)
    times = 6 if training.recomputation == "full" else 4
    nbytes, values = _activation(model, training)
    count = times * layers * active
    value = plain(Fraction(count * training.micro_batches * nbytes * (e - 1), e))
    values = {**values, "c": times, "n": layers, "k": active, "e": e}
    return Quantity("expert", value, "bytes", "c n k m s b h a (e - 1) / e", values, GSHARD)


def _activation(model: Transformer, training: Training) -> tuple[int, dict[str, float]]:
    """Bytes of a tensor of [sequence, micro_batch, hidden], and what it is computed from."""
    _, _, each = _BYTES[training.precision]
    s, b, h = training.sequence, training.micro_batch, model.hidden
    return s * b * h * each, {"m": training.micro_batches, "s": s, "b": b, "h": h, "a": each}
