"""Whether a training step fits into the memory of a device, and what does."""

from __future__ import annotations

import math
from dataclasses import replace

from tfdist.errors import ConfigError
from tfdist.planner.devices import DEVICES, Device
from tfdist.planner.memory import training_memory
from tfdist.planner.quantity import Quantity
from tfdist.planner.stages import check_division
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer


def memory_left(
    model: Transformer, training: Training, device: Device, *, framework: str = "megatron"
) -> Quantity:
    """Bytes that a training step leaves free on a device; negative if so many are missing.

    The interval is that of `training_memory`: if its lower end is positive too, the step fits even
    with an allocator that keeps large gaps.

    Raises:
        ConfigError: an argument is wrong, or the model cannot be divided like this.
    """
    if not isinstance(device, Device):
        raise ConfigError("device", device, "must be a Device")
    need = training_memory(model, training, framework=framework)
    values = {"M": device.memory_bytes, "n": need.value}
    left = device.memory_bytes - need.value
    _, most = need.interval or (need.value, need.value)
    return Quantity(
        f"left on {device.name}",
        left,
        "bytes",
        "M - n",
        values,
        device.source,
        interval=(device.memory_bytes - most, left),
    )


def fits(
    model: Transformer, training: Training, device: Device, *, framework: str = "megatron"
) -> bool:
    """Whether `memory_left` is at least 0."""
    return memory_left(model, training, device, framework=framework).value >= 0


def largest_micro_batch(
    model: Transformer, training: Training, device: Device, *, framework: str = "megatron"
) -> int:
    """Most sequences that a device can compute at a time; 0 if not even one fits.

    It divides the sequences of a group, `global_batch / data`. `training.micro_batch` is ignored.
    """
    check_division(model, training)
    own = training.global_batch // training.data
    small = [n for n in range(1, math.isqrt(own) + 1) if own % n == 0]
    sizes = sorted({*small, *(own // n for n in small)})
    for size in reversed(sizes):
        if fits(model, replace(training, micro_batch=size), device, framework=framework):
            return size
    return 0


def devices_that_fit(
    model: Transformer, training: Training, *, framework: str = "megatron"
) -> list[Device]:
    """The devices of the catalogue with enough memory for a training step, smallest first."""
    found = [each for each in DEVICES.values() if fits(model, training, each, framework=framework)]
    return sorted(found, key=lambda each: each.memory_bytes)
