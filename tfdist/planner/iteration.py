"""The time of a training iteration, from data sheets and what machines achieve of them.

The devices of a group compute its micro-batches one after another, each with a forward and a
backward pass (1F1B). A stage of the pipeline waits while the pipeline fills and drains, once an
iteration: its bubble. Then the groups sum their gradients, and the optimizer updates the weights.
Nothing overlaps.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from tfdist.errors import checked_number
from tfdist.planner.device_work import Numbers, Work
from tfdist.planner.devices import Device
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer

# Standard deviation of log(measured / estimated) without a calibration; docs/planner.md says what
# was measured on an A100.
UNCALIBRATED = 0.2
_SHARPNESS = 4  # of the passage from waiting for launches to waiting for kernels


@dataclass(frozen=True)
class Achieved:
    """What machines achieve of their data sheets; the defaults are typical of an A100.

    Attributes:
        matrix: share of the peak FLOPs in large matrix products.
        narrow: width of a device's slice of a matrix at which that share has halved.
        memory: share of the memory bandwidth in element-wise operations.
        launch_secs: seconds in which a process launches the kernels of one pass.
        logit_bytes: bytes that the loss reads and writes for each logit.
        collective_secs: latency of an all-reduce for each doubling of the group.
        tensor_link: share of the link bandwidth in the all-reduces of tensor parallelism.
        tensor_network: share of the network bandwidth in these, if a group spans machines.
        pipeline: share of the bandwidth between two stages.
        data_link: share of the link bandwidth in the all-reduce of the gradients.
        data_network: share of the network bandwidth in it, if a group spans machines.
        optimizer: share of the memory bandwidth in the optimizer.
    """

    matrix: float = 0.78
    narrow: float = 60.0
    memory: float = 0.7
    launch_secs: float = 0.7e-3
    logit_bytes: float = 90.0
    collective_secs: float = 50e-6
    tensor_link: float = 0.8
    tensor_network: float = 0.6
    pipeline: float = 0.5
    data_link: float = 0.6
    data_network: float = 0.25
    optimizer: float = 0.7

    def __post_init__(self) -> None:
        for each in fields(self):
            value, rule = getattr(self, each.name), "must be positive"
            checked_number(f"achieved.{each.name}", value, lambda n: 0 < n < 1e9, rule)


class Seconds(NamedTuple):
    """The time of an iteration.

    Attributes:
        kernels: of all passes of a micro-batch through a layer.
        launches: of the kernels of these passes.
        layer: of these passes; the kernels, or their launches if these take longer.
        all_reduces: of these passes.
        head: of a micro-batch.
        tensor_bandwidth: bytes per second of an all-reduce.
        stage_bandwidth: bytes per second between two stages.
        gradient_bandwidth: bytes per second of the all-reduce of the gradients.
        update_bandwidth: bytes per second of the optimizer.
        compute: of the iteration, like what follows.
        tensor: the all-reduces of tensor parallelism.
        bubble: of the pipeline.
        transfers: between stages.
        gradients: the all-reduce of the gradients.
        optimizer: the update of the weights.
    """

    kernels: Numbers
    launches: Numbers
    layer: Numbers
    all_reduces: Numbers
    head: Numbers
    tensor_bandwidth: Numbers
    stage_bandwidth: Numbers
    gradient_bandwidth: Numbers
    update_bandwidth: Numbers
    compute: Numbers
    tensor: Numbers
    bubble: Numbers
    transfers: Numbers
    gradients: Numbers
    optimizer: Numbers

    @property
    def total(self) -> Numbers:
        """Of the iteration."""
        sent = self.tensor + self.transfers + self.gradients
        return self.compute + self.bubble + sent + self.optimizer


def seconds(work: Work, achieved: Achieved) -> Seconds:
    """The time of the work of one iteration, or of each of several."""
    w, a = work, achieved
    memory = a.memory * w.memory_bandwidth
    products = a.matrix * w.peak * w.width / (w.width + a.narrow)
    kernels = w.flops / products + w.memory_bytes / memory
    launches = w.passes * a.launch_secs
    layer = (kernels**_SHARPNESS + launches**_SHARPNESS) ** (1 / _SHARPNESS)
    head = w.logit_flops / products + w.logits * a.logit_bytes / memory

    # Neighbouring ranks share matrices, then come the groups that share the batch, then the stages.
    # All members of a group that are on one machine use its network together.
    tensor_members = np.minimum(w.tensor, w.per_machine)
    tensor_bandwidth = _bandwidth(w, w.tensor, tensor_members, a.tensor_link, a.tensor_network)
    ring = 2 * (w.tensor - 1) / w.tensor * w.message_bytes / tensor_bandwidth
    all_reduces = w.all_reduces * (ring + a.collective_secs * np.log2(w.tensor))
    devices = w.tensor * w.data
    stage_bandwidth = _bandwidth(w, devices * w.stages, 1, a.pipeline, a.pipeline)
    data_members = np.clip(w.per_machine / w.tensor, 1, w.data)
    gradient_bandwidth = _bandwidth(w, devices, data_members, a.data_link, a.data_network)
    update_bandwidth = a.optimizer * w.memory_bandwidth

    passages = w.micro_batches * w.interleaved + w.stages - 1
    return Seconds(
        kernels,
        launches,
        layer,
        all_reduces,
        head,
        tensor_bandwidth,
        stage_bandwidth,
        gradient_bandwidth,
        update_bandwidth,
        compute=w.micro_batches * (w.layers * layer + head),
        tensor=w.micro_batches * w.layers * all_reduces,
        bubble=(w.stages - 1) * w.layers * (layer + all_reduces) / w.interleaved,
        transfers=np.where(w.stages > 1, 2 * passages * w.transfer_bytes / stage_bandwidth, 0),
        gradients=2 * (w.data - 1) / w.data * w.gradient_bytes / gradient_bandwidth,
        optimizer=w.update_bytes / update_bandwidth,
    )


def _bandwidth(
    work: Work, span: Numbers, members: Numbers, link_share: float, network_share: float
) -> Numbers:
    """Of a ring of devices, of which a machine has `members`, within `span` consecutive ranks."""
    link = link_share * work.link
    network = np.minimum(network_share * work.network * members, link)
    return np.where(span > work.per_machine, network, link)


def iteration_time(
    model: Transformer, training: Training, device: Device, achieved: Achieved | None = None
) -> Quantity:
    """The seconds of one iteration, and what takes them.

    Its parts are compute, tensor communication, pipeline bubble, pipeline communication,
    data-parallel all-reduce and optimizer.

    Args:
        model: the shape.
        training: batch, precision and division of the work.
        device: the accelerator, with its links and its network.
        achieved: None for the defaults. `Calibration.achieved` has what your machines achieve, and
            `Calibration.predict` predicts better yet.

    Raises:
        ConfigError: the pipeline has more stages than the model has layers, or `tensor` does not
            divide the heads.
    """
    work = Work.of(model, training, device)
    time = seconds(work, Achieved() if achieved is None else achieved)
    letters = {
        **{"m": work.micro_batches, "n": work.layers, "p": work.stages, "v": work.interleaved},
        **{"x": time.kernels, "y": time.launches, "z": time.head, "c": time.all_reduces},
        **{"d": work.data, "B": work.transfer_bytes, "G": work.gradient_bytes},
        **{"U": work.update_bytes, "W": time.stage_bandwidth, "R": time.gradient_bandwidth},
        "M": time.update_bandwidth,
    }
    formulas = (
        ("compute", time.compute, "m (n (x^4 + y^4)^(1/4) + z)", "appendix"),
        ("tensor communication", time.tensor, "m n c", "section 3.2"),
        ("pipeline bubble", time.bubble, "(p - 1) n ((x^4 + y^4)^(1/4) + c) / v", "section 2.2"),
        ("pipeline communication", time.transfers, "2 (m v + p - 1) B / W", "section 3.2"),
        ("data-parallel all-reduce", time.gradients, "2 (d - 1) / d G / R", "section 3.3"),
        ("optimizer", time.optimizer, "U / M", ""),
    )
    parts = []
    for name, value, formula, section in formulas:
        used = {k: float(letters[k]) for k in letters if k in re.findall("[a-zA-Z]", formula)}
        source = f"arXiv 2104.04473, {section}" if section else ""
        parts.append(Quantity(name, float(value), "seconds", formula, used, source))
    total = Quantity.sum_of("iteration time", "seconds", parts)
    likely = math.exp(1.645 * UNCALIBRATED)
    return replace(total, interval=(total.value / likely, total.value * likely))
