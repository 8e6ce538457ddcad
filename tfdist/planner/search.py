"""The cheapest cluster for a training: which devices, how many, and how they divide the work."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from tfdist.errors import ConfigError, checked_integer, checked_number
from tfdist.planner.capacity import memory_left
from tfdist.planner.device_work import Work
from tfdist.planner.devices import DEVICES, Device, find_device
from tfdist.planner.iteration import Achieved, seconds
from tfdist.planner.parameters import count_parameters
from tfdist.planner.stages import shard
from tfdist.planner.training import RECOMPUTATIONS, SLOTS, Training
from tfdist.planner.transformer import LARGEST, Transformer

_MICRO_BATCHES = (1, 2, 4, 8, 16)
_MOST_DEVICES = 2**20
_WHOLE = ("tensor", "pipeline", "data", "micro_batch", "interleaved", "expert")


@dataclass(frozen=True)
class Offer:
    """A cluster and what a training on it takes.

    Attributes:
        device: the accelerator.
        training: how its devices divide the work.
        step_secs: seconds of a training step.
        seconds: of the whole training.
        usd: its price.
    """

    device: Device
    training: Training
    step_secs: float
    seconds: float
    usd: float

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.training.devices

    def as_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {
            "device": self.device.name,
            "devices": self.devices,
            "training": asdict(self.training),
            "step_secs": self.step_secs,
            "time_secs": self.seconds,
            "cost": self.usd,
        }


def fastest_division(
    model: Transformer,
    training: Training,
    device: Device,
    devices: int,
    *,
    fixed: Mapping[str, Any] = MappingProxyType({}),
    achieved: Achieved | None = None,
) -> Training | None:
    """The fastest way to divide a training among devices that fits into their memory.

    It tries tensor parallelism within a machine, all lengths of a pipeline, sizes of the
    micro-batch, the stages of recomputation, and ZeRO 0, 1 and 3. What `training` says of these is
    ignored; the rest is kept.

    Args:
        model: the shape.
        training: what to train.
        device: the accelerator.
        devices: their number.
        fixed: values of fields of Training that the search must keep, such as {"tensor": 8}.
        achieved: what machines achieve of their data sheet; None for typical values.

    Returns:
        None if no division fits into the memory.

    Raises:
        ConfigError: an argument is wrong, or the model cannot be divided by what is fixed.
    """
    _check_fixed(fixed)
    devices = checked_integer("devices", devices, 1, _MOST_DEVICES)
    size = count_parameters(model).value
    found = [
        each
        for each in _divisions(model, training, device, devices, fixed)
        if _may_fit(model, size, each, device)
    ]
    if not found:
        return None
    works = Work.of_several(Work.of(model, each, device) for each in found)
    totals = np.broadcast_to(seconds(works, achieved or Achieved()).total, len(found))
    for index in np.argsort(totals, kind="stable"):
        division: Training = found[index]
        if memory_left(model, division, device).value >= 0:
            return division
    return None


def _check_fixed(fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if name in _WHOLE:
            checked_integer(name, value, 1, LARGEST)
        elif name not in ("zero", "recomputation", "sequence_parallel"):
            raise ConfigError("fixed", name, "must be what the search chooses")
    # The others do not depend on the devices.
    Training(**{name: value for name, value in fixed.items() if name not in _WHOLE})


def _divisions(
    model: Transformer, training: Training, device: Device, devices: int, fixed: Mapping[str, Any]
) -> Iterator[Training]:
    own = {"interleaved": 1, "expert": 1, **fixed}
    sizes = [own.pop("micro_batch")] if "micro_batch" in own else _MICRO_BATCHES
    stages = [own.pop("zero")] if "zero" in own else (0, 1, 3)
    if "recomputation" in own:
        recomputations = [own.pop("recomputation")]
    else:  # FlashAttention recomputes what "selective" does
        again = "selective" if training.flash_attention else None
        recomputations = [each for each in RECOMPUTATIONS if each != again]
    for tensor, pipeline, data in _shares(model, device, devices, own):
        share = training.global_batch // data
        if training.global_batch % data or data % own["expert"]:
            continue
        if pipeline * own["interleaved"] > model.layers or own["interleaved"] > pipeline == 1:
            continue
        for micro_batch, recomputation, zero in itertools.product(sizes, recomputations, stages):
            is_useless = zero and data == 1 and "zero" not in fixed
            if is_useless or share % micro_batch:
                continue
            division = {
                **{"tensor": tensor, "pipeline": pipeline, "data": data, "zero": zero},
                **{"micro_batch": micro_batch, "recomputation": recomputation},
                "sequence_parallel": tensor > 1,
            }
            yield replace(training, **{**division, **own})


def _shares(
    model: Transformer, device: Device, devices: int, fixed: dict[str, Any]
) -> Iterator[tuple[int, int, int]]:
    """Tensor, pipeline and data, whose product is the number of devices."""
    if "tensor" in fixed:
        shard(model, fixed["tensor"])
        tensors = [fixed["tensor"]]
    else:
        tensors = [
            size
            for size in _powers_of_2(min(device.per_machine, devices))
            if _can_be_sharded(model, size)
        ]
    for tensor in tensors:
        lengths = range(1, min(model.layers, devices // tensor) + 1)
        for pipeline in [fixed["pipeline"]] if "pipeline" in fixed else lengths:
            data, rest = divmod(devices, tensor * pipeline)
            if data and not rest and fixed.get("data", data) == data:
                yield tensor, pipeline, data


def _can_be_sharded(model: Transformer, tensor: int) -> bool:
    try:
        shard(model, tensor)
    except ConfigError:
        return False
    return True


def _may_fit(model: Transformer, size: float, training: Training, device: Device) -> bool:
    """False if less than a device holds is too much for it: far faster than the whole sum.

    A device of the largest stage holds at least its share of all layers, and of each layer more
    than the inputs of its norms, of its matrices and of the softmax.
    """
    t = training
    weights = 2 / (t.data if t.zero >= 3 else 1)  # in 16 bits, as the gradients
    gradients = 2 / (t.data if t.zero >= 2 else 1)
    slots = 4 * len(SLOTS[t.optimizer]) / (t.data if t.zero >= 1 else 1)
    tokens = t.micro_batch * t.sequence * min(t.pipeline, t.micro_batches)
    kept = 2.0 * model.hidden
    if t.recomputation != "full":
        kept = 8.0 * model.hidden
        if t.recomputation == "none" and not (t.flash_attention or model.window):
            kept += 4 * model.heads * t.sequence
    held = size / t.expert * (weights + gradients + slots) + kept * tokens * model.layers
    return held / (t.tensor * t.pipeline) <= device.memory_bytes


def _powers_of_2(most: int) -> Iterator[int]:
    return itertools.takewhile(lambda n: n <= most, (2**n for n in itertools.count()))


def cheapest_clusters(
    model: Transformer,
    training: Training,
    tokens: float,
    *,
    deadline_secs: float | None = None,
    names: Sequence[str] | None = None,
    most_devices: int = 4096,
    achieved: Achieved | None = None,
) -> list[Offer]:
    """The clusters of which none is both slower and dearer than another, cheapest first.

    Args:
        model: the shape.
        training: its batch, sequence, precision and optimizer.
        tokens: to train on.
        deadline_secs: leaves out what takes longer; None for no limit.
        names: of the devices of the catalogue to try; None for all.
        most_devices: the largest number of devices; powers of 2 are tried.
        achieved: what machines achieve of their data sheet; None for typical values.

    Returns:
        The Pareto front of cost and time; nothing if no cluster fits.

    Raises:
        ConfigError: an argument is wrong.
    """
    rule = "must be a positive number"
    tokens = checked_number("tokens", tokens, lambda n: 0 < n < 1e18, rule)
    if deadline_secs is not None:
        checked_number("deadline_secs", deadline_secs, lambda n: 0 < n < np.inf, rule)
    checked_integer("most_devices", most_devices, 1, _MOST_DEVICES)
    tried = DEVICES.values() if names is None else [find_device(name) for name in names]
    offers = [
        offer
        for device in tried
        for devices in _powers_of_2(most_devices)
        if (offer := _offer(model, training, device, devices, tokens, achieved)) is not None
        if deadline_secs is None or offer.seconds <= deadline_secs
    ]
    return pareto(offers)


def _offer(
    model: Transformer,
    training: Training,
    device: Device,
    devices: int,
    tokens: float,
    achieved: Achieved | None,
) -> Offer | None:
    division = fastest_division(model, training, device, devices, achieved=achieved)
    if division is None:
        return None
    step = seconds(Work.of(model, division, device), achieved or Achieved()).total
    total = float(step) * tokens / division.tokens
    return Offer(device, division, float(step), total, total / 3600 * devices * device.usd_per_hour)


def pareto(offers: Iterable[Offer]) -> list[Offer]:
    """Those of which none is both slower and dearer than another, cheapest first."""
    front: list[Offer] = []
    for each in sorted(offers, key=lambda offer: (offer.usd, offer.seconds)):
        if not front or each.seconds < front[-1].seconds:
            front.append(each)
    return front
