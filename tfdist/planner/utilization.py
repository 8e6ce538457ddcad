"""How much of the devices' peak a training reaches, how long it takes, and what it costs.

MFU, model FLOPs utilization, counts the FLOPs that the model needs: forward and backward pass. HFU,
hardware FLOPs utilization, also counts recomputation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdist.errors import ConfigError, checked_choice, checked_integer, checked_number
from tfdist.planner.compute import UNIT, checked_instance
from tfdist.planner.devices import Device
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import PRECISIONS
from tfdist.planner.transformer import LARGEST

DEFINITION = "arXiv 2204.02311, section 4.1"
# The MFU of a training whose MFU is unknown: of large models on thousands of devices.
LIKELY_MFU = 0.41
MFU_INTERVAL = (0.302, 0.563)
MFU_SOURCE = (
    "MFU 0.41 of Llama 3.1 405B (arXiv 2407.21783, table 4), from 0.302 of Megatron-Turing NLG "
    "(arXiv 2204.02311, table 3) to 0.563 of a model of 1T (arXiv 2205.05198, table 5)"
)


def mfu(
    flops: Quantity, seconds: float, device: Device, devices: int, *, precision: str = "mixed"
) -> Quantity:
    """Model FLOPs utilization: what a training needs, as a fraction of the peak.

    For a rate of tokens per second, pass `training_flops(model, training, tokens=rate)` and 1.0.

    Args:
        flops: of `training_flops` or `approximate_flops`.
        seconds: that they took.
        device: one of the devices.
        devices: their number.
        precision: as in `Training`; "fp32" takes the peak in fp32.

    Raises:
        ConfigError: an argument is wrong, or more than the peak was reached.
    """
    done = _model_flops(flops)
    return _utilization("MFU", done, seconds, _peak(device, precision), devices)


def hfu(
    flops: Quantity, seconds: float, device: Device, devices: int, *, precision: str = "mixed"
) -> Quantity:
    """Hardware FLOPs utilization: as `mfu`, with recomputation."""
    checked_flops(flops)
    return _utilization("HFU", flops.value, seconds, _peak(device, precision), devices)


def training_time(
    flops: Quantity,
    device: Device,
    devices: int,
    *,
    precision: str = "mixed",
    mfu: float | None = None,
    hfu: float | None = None,
) -> Quantity:
    """Seconds of a training that reaches a fraction of the peak.

    Args:
        flops: of `training_flops` or `approximate_flops`.
        device: one of the devices.
        devices: their number.
        precision: as in `Training`; "fp32" takes the peak in fp32.
        mfu: fraction of the peak without recomputation. If this and `hfu` are None, the result has
            an interval from published trainings on thousands of devices. Smaller trainings reach
            less if their batch is small or their network slow.
        hfu: fraction of the peak with recomputation.

    Raises:
        ConfigError: an argument is wrong.
    """
    done, peak = _model_flops(flops), _peak(device, precision)
    devices = checked_integer("devices", devices, 1, LARGEST)
    if mfu is not None and hfu is not None:
        raise ConfigError("hfu", hfu, "must be None if mfu is given")
    reached, source = LIKELY_MFU, MFU_SOURCE
    if mfu is not None:
        reached, source = _checked_fraction("mfu", mfu), ""
    elif hfu is not None:
        reached, source, done = _checked_fraction("hfu", hfu), "", flops.value
    work = done / (devices * peak)
    values = {"F": done, "d": devices, "P": peak, "u": reached}
    interval = None if source == "" else (work / MFU_INTERVAL[1], work / MFU_INTERVAL[0])
    return Quantity(
        "time", work / reached, "seconds", "F / (d P u)", values, source, interval=interval
    )


def training_cost(time: Quantity, device: Device, devices: int) -> Quantity:
    """US dollars for these devices during this time, at the price of the catalogue.

    Raises:
        ConfigError: an argument is wrong.
    """
    checked_instance("time", time, Quantity)
    if time.unit != "seconds":
        raise ConfigError("time", time.unit, "must be a quantity in seconds")
    checked_instance("device", device, Device)
    devices = checked_integer("devices", devices, 1, LARGEST)
    rate = devices * device.usd_per_hour / 3600
    values = {"t": time.value, "d": devices, "c": device.usd_per_hour}
    interval = None
    if time.interval is not None:
        interval = (time.interval[0] * rate, time.interval[1] * rate)
    return Quantity(
        "cost", time.value * rate, "USD", "t d c / 3600", values, device.priced, interval=interval
    )


def sum_of_times(name: str, parts: Sequence[Quantity]) -> Quantity:
    """The time of parts that follow one another; its interval is the sum of theirs."""
    known = Quantity.sum_of(name, "seconds", parts)
    if all(part.interval is None for part in parts):
        return known
    ends = [part.interval or (part.value, part.value) for part in parts]
    interval = (sum(least for least, _ in ends), sum(most for _, most in ends))
    return Quantity(name, known.value, "seconds", parts=known.parts, interval=interval)


def checked_flops(flops: Any) -> None:
    """Checks that a quantity is one of FLOPs.

    Raises:
        ConfigError: it is none.
    """
    checked_instance("flops", flops, Quantity)
    if flops.unit != UNIT:
        raise ConfigError("flops", flops.unit, "must be a quantity in FLOPs")


def _model_flops(flops: Quantity) -> float:
    checked_flops(flops)
    return flops.value - flops.part("recomputation")


def _peak(device: Device, precision: str) -> float:
    checked_instance("device", device, Device)
    checked_choice("precision", precision, PRECISIONS)
    return device.fp32_flops if precision == "fp32" else device.flops


def _utilization(name: str, done: float, seconds: float, peak: float, devices: int) -> Quantity:
    rule = "must be a positive number of seconds"
    seconds = checked_number("seconds", seconds, lambda n: 0 < n < 1e30, rule)
    devices = checked_integer("devices", devices, 1, LARGEST)
    reached = done / (seconds * devices * peak)
    if reached > 1:
        rule = f"must be at least {done / (devices * peak):.6g}, the time at the peak"
        raise ConfigError("seconds", seconds, rule)
    values = {"F": done, "t": seconds, "d": devices, "P": peak}
    return Quantity(name, reached, "fraction", "F / (t d P)", values, DEFINITION)


def _checked_fraction(field: str, value: Any) -> float:
    rule = "must be more than 0 and at most 1"
    return checked_number(field, value, lambda u: 0 < u <= 1, rule)
