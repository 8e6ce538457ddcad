"""What one training needs: parameters, memory, compute, traffic, time and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tfdist.errors import ConfigError, checked_number
from tfdist.planner.capacity import memory_left
from tfdist.planner.compute import training_flops
from tfdist.planner.devices import Device
from tfdist.planner.iteration import Achieved, iteration_time
from tfdist.planner.memory import training_memory
from tfdist.planner.parallel_traffic import step_traffic
from tfdist.planner.parameters import count_active_parameters, count_parameters
from tfdist.planner.pitfalls import cautions
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer
from tfdist.planner.utilization import mfu, training_cost, training_time

_STATES = ("weights", "gradients", "slots")


@dataclass(frozen=True)
class TrainingPlan:
    """What a training needs.

    Attributes:
        model: its shape.
        training: its batch, precision and division.
        device: what it runs on.
        tokens: what it is trained on.
        parameters: of the model.
        active_parameters: those that a token uses.
        memory: bytes on the device that needs most.
        left: bytes that this leaves free; negative if so many are missing.
        flops: of the whole training.
        traffic: bytes that a device sends in a step, at most.
        time: seconds of the whole training.
        utilization: the share of the peak FLOPs that this time needs (MFU).
        cost: US dollars.
        warnings: what to check before you rely on these figures.
    """

    model: Transformer
    training: Training
    device: Device
    tokens: float
    parameters: Quantity
    active_parameters: Quantity
    memory: Quantity
    left: Quantity
    flops: Quantity
    traffic: Quantity
    time: Quantity
    utilization: Quantity
    cost: Quantity
    warnings: tuple[str, ...]

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """All of them, in the order in which they follow from each other."""
        is_dense = self.active_parameters.value == self.parameters.value
        active = () if is_dense else (self.active_parameters,)
        return (
            *(self.parameters, *active, self.memory, self.left, self.flops, self.traffic),
            *(self.time, self.utilization, self.cost),
        )

    def as_json(self) -> dict[str, Any]:
        """All figures as plain data; the keys are those of the attributes, with the unit."""
        total = self.parameters.as_json()
        return {
            "device": self.device.name,
            "devices": self.training.devices,
            "training": asdict(self.training),
            "tokens": self.tokens,
            "parameters": {
                "total": total["total"],
                "active": self.active_parameters.value,
                "parts": total["parts"],
            },
            "memory_bytes": {
                **self.memory.as_json(),
                "device": self.device.memory_bytes,
                "left": self.left.value,
            },
            "flops": self.flops.as_json(),
            "traffic_bytes": self.traffic.as_json(),
            "time_secs": self.time.as_json(),
            "mfu": self.utilization.value,
            "cost": {**self.cost.as_json(), "unit": "USD"},
            "warnings": list(self.warnings),
        }


def plan_training(
    model: Transformer,
    training: Training,
    device: Device,
    tokens: float,
    *,
    utilization: float | None = None,
    achieved: Achieved | None = None,
    warnings: Sequence[str] = (),
) -> TrainingPlan:
    """Everything that a training needs.

    Args:
        model: its shape.
        training: its batch, precision and division among devices.
        device: the accelerator.
        tokens: to train on.
        utilization: the share of the peak FLOPs that the training reaches (MFU). None computes the
            time of an iteration from the data sheet.
        achieved: what machines achieve of their data sheet; None for typical values.
        warnings: further ones, such as those of a file.

    Raises:
        ConfigError: an argument is wrong, or the model cannot be divided like this.
    """
    tokens = checked_number("tokens", tokens, lambda n: 0 < n < 1e18, "must be a positive number")
    if not isinstance(device, Device):
        raise ConfigError("device", device, "must be a Device")
    memory = training_memory(model, training)
    left = memory_left(model, training, device)
    flops = training_flops(model, training, tokens=tokens)
    if utilization is None:
        step = iteration_time(model, training, device, achieved)
        time = replace(step.repeated(tokens / training.tokens, "steps"), name="time")
    else:
        precision = training.precision
        time = training_time(flops, device, training.devices, precision=precision, mfu=utilization)
    states = Quantity.sum_of(
        "states", "bytes", [part for part in memory.parts if part.name in _STATES]
    )
    activations = Quantity("activations", memory.part("activations"), "bytes")
    found = cautions(model, training, states=states, activations=activations)
    if left.value < 0:
        found.insert(0, _does_not_fit(left, device))
    elif left.interval is not None and left.interval[0] < 0:
        found.insert(0, _may_not_fit(memory, device))
    return TrainingPlan(
        model,
        training,
        device,
        tokens,
        count_parameters(model),
        count_active_parameters(model),
        memory,
        left,
        flops,
        step_traffic(model, training),
        time,
        mfu(flops, time.value, device, training.devices, precision=training.precision),
        training_cost(time, device, training.devices),
        (*warnings, *found),
    )


def _does_not_fit(left: Quantity, device: Device) -> str:
    return (
        f"a step needs {-left.value / 2**30:,.1f} GiB more than {device.name} has; divide the "
        "model among more devices, or recompute more"
    )


def _may_not_fit(memory: Quantity, device: Device) -> str:
    _, most = memory.interval or (memory.value, memory.value)
    return (
        f"it may not fit: allocators keep gaps, with which {most / 2**30:,.1f} GiB may be needed "
        f"of the {device.memory_bytes / 2**30:,.1f} GiB of {device.name}; try it first"
    )
