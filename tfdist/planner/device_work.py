"""What one device has to do in a training iteration: FLOPs, bytes in its memory, bytes to send.

Letters: b sequences of a micro-batch, s tokens of a sequence, h hidden, t devices that share a
matrix. A pass is the forward pass of a micro-batch through a layer; the backward pass computes and
moves as much as two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tfdist.errors import ConfigError
from tfdist.planner import parameters
from tfdist.planner.devices import Device
from tfdist.planner.training import SLOTS, Training
from tfdist.planner.transformer import Transformer

Numbers: TypeAlias = Any  # a float, or an array with an item for each of several iterations


class Work(NamedTuple):
    """The work of the last device of a pipeline, which has the output head, and its data sheet.

    Attributes:
        micro_batches: of an iteration.
        layers: of the device.
        stages: of the pipeline.
        interleaved: stages on each device.
        passes: through each layer: 3, or 4 with full recomputation.
        flops: of all passes of a micro-batch through a layer.
        memory_bytes: that the element-wise operations of these passes read and write.
        width: of the device's slice of a matrix.
        logits: of a micro-batch.
        logit_flops: of their products.
        all_reduces: of a micro-batch and layer.
        message_bytes: of one all-reduce.
        transfer_bytes: to the next stage, of a micro-batch.
        tensor: devices that share a matrix.
        data: groups that share the batch.
        gradient_bytes: that the device adds to those of the other groups.
        update_bytes: that the optimizer reads and writes.
        peak: FLOPs per second.
        memory_bandwidth: bytes per second.
        link: bytes per second to a device of the same machine.
        network: bytes per second to another machine.
        per_machine: devices of a machine.
    """

    micro_batches: Numbers
    layers: Numbers
    stages: Numbers
    interleaved: Numbers
    passes: Numbers
    flops: Numbers
    memory_bytes: Numbers
    width: Numbers
    logits: Numbers
    logit_flops: Numbers
    all_reduces: Numbers
    message_bytes: Numbers
    transfer_bytes: Numbers
    tensor: Numbers
    data: Numbers
    gradient_bytes: Numbers
    update_bytes: Numbers
    peak: Numbers
    memory_bandwidth: Numbers
    link: Numbers
    network: Numbers
    per_machine: Numbers

    @classmethod
    def of(cls, model: Transformer, training: Training, device: Device) -> Work:
        """The work of one iteration.

        Biases count as columns of their matrices, which adds less than 0.1 %. The traffic of
        experts is not counted.

        Raises:
            ConfigError: the pipeline has more stages than the model has layers, or `tensor` does
                not divide the heads.
        """
        stages, t = training.pipeline * training.interleaved, training.tensor
        if stages > model.layers:
            rule = f"must be at most the layers ({model.layers}), times `interleaved`"
            raise ConfigError("pipeline", training.pipeline, rule)
        if model.heads % t:
            raise ConfigError("tensor", t, f"must divide the heads ({model.heads})")
        layers = math.ceil(model.layers / stages) * training.interleaved
        tokens = training.micro_batch * training.sequence
        logits = tokens * model.vocabulary / t
        fp32 = training.precision == "fp32"
        full = training.recomputation == "full"
        activation_bytes = 4 if fp32 else 2
        message_bytes = activation_bytes * tokens * model.hidden
        weights = _weights(model, training, layers)
        gradient_bytes = 2 if training.precision == "mixed" else 4
        return cls(
            micro_batches=training.micro_batches,
            layers=layers,
            stages=training.pipeline,
            interleaved=training.interleaved,
            passes=4 if full else 3,
            flops=_flops(model, training) * tokens / t,
            memory_bytes=_memory_bytes(model, training) * activation_bytes * tokens / t,
            width=model.hidden / t,
            logits=logits,
            logit_flops=3 * 2 * logits * model.hidden,
            all_reduces=(0 if t == 1 else 1 if model.parallel_block else 2) * (3 if full else 2),
            message_bytes=message_bytes,
            # Each device sends its share, and the receivers gather (arXiv 2104.04473, section 4.1).
            transfer_bytes=message_bytes / t,
            tensor=t,
            data=training.data,
            gradient_bytes=weights * gradient_bytes * _exchanges(training),
            update_bytes=_update_bytes(training, gradient_bytes) * weights,
            peak=device.fp32_flops if fp32 else device.flops,
            memory_bandwidth=device.memory_bandwidth,
            link=device.link_bandwidth,
            network=device.network_bandwidth,
            per_machine=device.per_machine,
        )

    @classmethod
    def of_several(cls, works: Iterable[Work]) -> Work:
        """The work of several iterations, as arrays."""
        return cls(*(np.array(each, np.float64) for each in zip(*works, strict=True)))


def _exchanges(training: Training) -> float:
    """The traffic of ZeRO, by that of one all-reduce of the gradients.

    Stages 2 and 3 reduce the gradients of each micro-batch, since no device has room for all of
    them; stage 3 also gathers the weights for each forward and each backward pass.
    """
    m = training.micro_batches
    return {2: (m + 1) / 2, 3: 3 * m / 2}.get(training.zero, 1.0)


def _flops(model: Transformer, training: Training) -> float:
    """Of one token in one layer, all passes; attention's two products have 2 s q FLOPs each."""
    active = None if model.experts is None else model.experts.active
    matrices = [parameters.attention(model), parameters.mlp(model)]
    matrices += parameters.experts(model, active)
    linear = 2 * sum(each.value for each in matrices) / model.layers
    seen = min(training.sequence, model.window or training.sequence)
    scores = 4 * seen * model.query_width
    recomputed = {"none": 0.0, "selective": scores, "full": linear + scores}
    return 3 * (linear + scores) + recomputed[training.recomputation]


def _memory_bytes(model: Transformer, training: Training) -> float:
    """Of one token in one layer, all passes, per byte of an element, times `tensor`.

    The norms, residuals and dropouts read and write 11 h elements; GELU and the copies of queries,
    keys and values 2 elements for each of theirs. Softmax and dropout of the scores have 4.5: the
    mask of the dropout has one byte.
    """
    shared = 1 if training.sequence_parallel else training.tensor
    mlp, experts = float(model.mlp), model.experts
    if experts is not None:
        own = experts.mlp or mlp
        used = experts.active * own + (experts.shared_mlp or experts.shared * own)
        mlp += (used - mlp) * model.expert_layers / model.layers
    width = 2 * (model.query_width + 2 * model.kv_width) + model.mlp_matrices * mlp
    seen = min(training.sequence, model.window or training.sequence)
    scores = 0 if training.flash_attention else 4.5 * model.heads * seen
    recomputed = {"none": 3, "selective": 3, "full": 4}[training.recomputation]
    again = scores if training.recomputation == "selective" else 0
    return recomputed * (11 * model.hidden * shared + width + scores) + again


def _weights(model: Transformer, training: Training, layers: int) -> float:
    """Of the device: its layers, and the embedding or the head."""
    experts = parameters.experts(model)
    dense = [parameters.attention(model), parameters.mlp(model), parameters.norms(model)]
    whole = sum(each.value for each in dense + experts[1:])
    whole += sum(each.value for each in experts[:1]) / training.expert
    tables = [parameters.embedding(model)]
    if training.pipeline == 1:
        tables.append(parameters.head(model))
    ends = sum(each.value for each in tables)
    return (whole * layers / model.layers + ends) / training.tensor


def _update_bytes(training: Training, gradient_bytes: int) -> float:
    """Of one weight: its gradient is read twice, the fp32 weight and the slots are updated.

    The first reading is for the norm of the gradients. With mixed precision a copy of the weight is
    written, too.
    """
    copy = 2 if training.precision.startswith("mixed") else 0
    read = 2 * gradient_bytes + 8 * (1 + len(SLOTS[training.optimizer])) + copy
    return read / (training.data if training.zero else 1)
