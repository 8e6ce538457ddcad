"""The cheapest cluster for a training: which devices, how many, and how they divide the work."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tfdist.errors import checked_integer, checked_number
from tfdist.planner.capacity import memory_left
from tfdist.planner.device_work import Work
from tfdist.planner.devices import DEVICES, Device, find_device
from tfdist.planner.iteration import Achieved, seconds
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer

_MICRO_BATCHES = (1, 2, 4, 8, 16)
_MOST_DEVICES = 2**20


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
    achieved: Achieved | None = None,
) -> Training | None:
    """The fastest way to divide a training among devices that fits into their memory.

    It tries tensor parallelism within a machine, all lengths of a pipeline, sizes of the
    micro-batch, the stages of recomputation, and ZeRO 0 and 1. What `training` says of these is
    ignored; its batch, sequence, precision and optimizer are kept.

    Args:
        model: the shape.
        training: what to train.
        device: the accelerator.
        devices: their number.
        achieved: what machines achieve of their data sheet; None for typical values.

    Returns:
        None if no division fits into the memory.
    """
    devices = checked_integer("devices", devices, 1, _MOST_DEVICES)
    found = list(_divisions(model, training, device, devices))
    if not found:
        return None
    works = Work.of_several(Work.of(model, each, device) for each in found)
    totals = np.broadcast_to(seconds(works, achieved or Achieved()).total, len(found))
    for index in np.argsort(totals, kind="stable"):
        if memory_left(model, found[index], device).value >= 0:
            division: Training = found[index]
            return division
    return None


def _divisions(
    model: Transformer, training: Training, device: Device, devices: int
) -> Iterator[Training]:
    for tensor in _powers_of_2(min(device.per_machine, devices)):
        if model.heads % tensor or model.vocabulary < tensor:
            continue
        for pipeline in range(1, min(model.layers, devices // tensor) + 1):
            data, rest = divmod(devices, tensor * pipeline)
            if rest or training.global_batch % data or model.layers % pipeline:
                continue
            own = training.global_batch // data
            sizes = [size for size in _MICRO_BATCHES if own % size == 0]
            choices = itertools.product(sizes, ("none", "selective", "full"), (0, 1))
            for micro_batch, recomputation, zero in choices:
                if (zero and data == 1) or (training.flash_attention and recomputation[0] == "s"):
                    continue
                yield replace(
                    training,
                    tensor=tensor,
                    pipeline=pipeline,
                    data=data,
                    expert=1,
                    interleaved=1,
                    micro_batch=micro_batch,
                    recomputation=recomputation,
                    zero=zero,
                    sequence_parallel=tensor > 1,
                )


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
