"""Predicts iteration times from a few that were measured.

A dozen constants say what machines achieve of their data sheets (`Achieved`). Before anything is
measured each has a typical value and a spread. Measured iterations move it as far as they say
something about it (maximum a posteriori). Similar iterations, such as those with the same shapes of
matrices, also deviate from the formulas in a similar way. A prediction therefore follows the
deviations of similar measured iterations: a Gaussian process over the deviations (Kennedy and
O'Hagan, "Bayesian calibration of computer models", 2001). All times are logarithms, so errors are
relative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tfdist.errors import ConfigError
from tfdist.planner.device_work import Work
from tfdist.planner.devices import Device, find_device
from tfdist.planner.iteration import Achieved, seconds
from tfdist.planner.measured import TIME, Iteration, Table, read_iterations
from tfdist.planner.memory import training_memory
from tfdist.planner.quantity import Quantity

Array: TypeAlias = NDArray[Any]

LEAST = 5  # measured iterations
# Standard deviations of the logarithms of the typical values.
SPREAD = {
    "matrix": 0.15,
    "narrow": 0.5,
    "memory": 0.3,
    "launch_secs": 0.25,
    "logit_bytes": 0.5,
    "collective_secs": 0.5,
    "tensor_link": 0.35,
    "tensor_network": 0.4,
    "pipeline": 0.7,
    "data_link": 0.5,
    "data_network": 0.4,
    "optimizer": 0.4,
}
# Standard deviations of log(measured / computed): what similar iterations share, and the rest.
SIMILAR, REST = 0.13, 0.03
# How many powers of 2 apart two iterations are no longer similar.
REACH = {"micro_batch": 1.5, "hidden": 2.0, "tensor": 1.0, "pipeline": 8.0, "data": 20.0}
LIKELY = 1.645  # standard deviations to each side that hold 90 %
# Measured times that are so many times longer or shorter than typical ones have another unit.
FARTHEST = 30.0
# An iteration so many standard deviations from what the others say is an outlier.
OUTLIER = 3.0

_NAMES = tuple(each.name for each in fields(Achieved))
_TYPICAL = np.log([getattr(Achieved(), name) for name in _NAMES])
_PRECISION = np.diag([SPREAD[name] ** -2 for name in _NAMES])


@dataclass(frozen=True)
class Calibration:
    """What measured iterations say about the machines; made by `calibrate`.

    Attributes:
        achieved: the constants, for `iteration_time`.
        spread: standard deviations of their logarithms, by name.
        measured: number of measured iterations.
        outliers: the places of measured iterations that contradict the others, by file and line;
            the calibration nearly ignores them.
    """

    achieved: Achieved
    spread: dict[str, float]
    measured: int
    outliers: tuple[str, ...]
    _settings: tuple[Device, int, str]
    _places: Array
    _deviations: Array
    _inverse: Array  # of the covariance of the deviations
    _slopes: Array  # of the measured iterations' times by the constants
    _covariance: Array  # of the constants

    @property
    def constants(self) -> list[Quantity]:
        """The constants with their intervals of 90 %."""
        units = {"narrow": "columns", "logit_bytes": "bytes"}
        source = f"fitted to {self.measured} measured iterations"
        found = []
        for name in _NAMES:
            value, factor = getattr(self.achieved, name), math.exp(LIKELY * self.spread[name])
            unit = (
                "seconds" if name.endswith("_secs") else units.get(name, "share of the data sheet")
            )
            interval = (value / factor, value * factor)
            found.append(Quantity(name, value, unit, source=source, interval=interval))
        return found

    def predict(self, rows: Table) -> dict[str, Any]:
        """The iteration time of each row, as plain data.

        `rows` has the columns of each row, and `predicted_ms`, `interval` (a measurement lies in it
        with a probability of 90 %) and `error`, which is |predicted / measured - 1|, or None if the
        row was not measured. `mean_error` and `max_error` are those of all measured rows. `fits` of
        a row says whether `training_memory` is at most the memory of the device. `fits` of the
        table says how many rows do, how many of these ran out of memory nevertheless, and their
        share; and how many rows were measured although they should not fit.

        Args:
            rows: as `measured` of `calibrate`. `iteration_ms` may be missing; it does not influence
                the prediction.

        Raises:
            ConfigError: a file, column or value is wrong, or there are no rows.
        """
        asked = read_iterations("rows", rows, *self._settings)
        work = Work.of_several(each.work for each in asked)
        constants = np.log([getattr(self.achieved, name) for name in _NAMES])
        near = _similarity(_places(asked), self._places)
        weights = near @ self._inverse
        middle = _log_ms(constants, work) + weights @ self._deviations
        # The uncertainty of the constants counts as far as the deviations do not make up for it.
        slopes = _slopes(constants, work) - weights @ self._slopes
        variance = SIMILAR**2 - np.sum(weights * near, axis=1) + REST**2
        variance += np.sum(slopes @ self._covariance * slopes, axis=1)
        likely = LIKELY * np.sqrt(variance)
        times = np.exp([middle, middle - likely, middle + likely]).T.tolist()
        found = [_predicted(*each) for each in zip(asked, times, strict=True)]
        errors = [row["error"] for row in found if row["error"] is not None]
        mean = sum(errors) / len(errors) if errors else None
        found = [row | {"fits": self._fits(each)} for row, each in zip(found, asked, strict=True)]
        return {
            "rows": found,
            "mean_error": mean,
            "max_error": max(errors, default=None),
            "fits": _counted([row["fits"] for row in found], asked),
        }

    def _fits(self, asked: Iteration) -> bool:
        device, *_ = self._settings
        return training_memory(asked.model, asked.training).value <= device.memory_bytes


def calibrate(
    measured: Table,
    device: Device | str = "a100-80g",
    vocabulary: int = 51200,
    recomputation: str = "full",
) -> Calibration:
    """Finds what the machines achieve from measured iterations; 20 are enough.

    Args:
        measured: the path of a CSV file with a header, or a list of dictionaries. The columns are
            `gpus`, `global_batch`, `micro_batch`, `hidden`, `heads`, `layers`, `sequence`,
            `tensor`, `data`, `pipeline` and `iteration_ms`.
        device: on which they ran, or its name.
        vocabulary: of the models.
        recomputation: of the trainings.

    Raises:
        ConfigError: a file, column or value is wrong, there are fewer than 5 rows, or the times are
            far from possible.
    """
    device = find_device(device) if isinstance(device, str) else device
    settings = (device, vocabulary, recomputation)
    runs = read_iterations("measured", measured, *settings)
    runs = [each for each in runs if not each.out_of_memory]
    if len(runs) < LEAST:
        raise ConfigError("measured", len(runs), f"must have at least {LEAST} rows")
    for each in runs:
        if each.milliseconds is None:
            rule = "must be measured in every row"
            raise ConfigError(f"{each.place}, {TIME}", None, rule, missing=True)
    work = Work.of_several(each.work for each in runs)
    logs = np.log([each.milliseconds or 0.0 for each in runs])
    ratio = float(np.exp(np.median(logs - _log_ms(_TYPICAL, work))))
    if not 1 / FARTHEST < ratio < FARTHEST:
        rule = f"must be milliseconds on {device.name}; they are {ratio:.2g} of what is typical"
        raise ConfigError(f"measured, {TIME}", runs[0].milliseconds, rule)
    places = _places(runs)
    similarity = _similarity(places, places)
    rest, constants = np.full(len(runs), REST**2), _TYPICAL
    while True:
        inverse = np.linalg.inv(similarity + np.diag(rest))
        constants = _fit(constants, work, logs, inverse)
        deviations = logs - _log_ms(constants, work)
        # How far each one is from what all the others predict for it, and how likely that is.
        without = inverse @ deviations / np.diag(inverse)
        unlikely = np.abs(without) * np.sqrt(np.diag(inverse))
        worst = int(np.argmax(unlikely))
        outliers = tuple(run.place for run, own in zip(runs, rest, strict=True) if own > REST**2)
        if unlikely[worst] <= OUTLIER or len(outliers) >= len(runs) // 4:
            break
        rest[worst] += without[worst] ** 2
    slopes = _slopes(constants, work)
    covariance = np.linalg.inv(slopes.T @ inverse @ slopes + _PRECISION)
    spread = dict(zip(_NAMES, np.sqrt(np.diag(covariance)).tolist(), strict=True))
    return Calibration(
        *(_achieved(constants), spread, len(runs), outliers, settings),
        *(places, deviations, inverse, slopes, covariance),
    )


def _fit(constants: Array, work: Work, logs: Array, inverse: Array) -> Array:
    """The likeliest constants, by Gauss-Newton with halved steps from these ones."""

    def cost(constants: Array) -> float:
        deviations, moved = logs - _log_ms(constants, work), constants - _TYPICAL
        return float(deviations @ inverse @ deviations + moved @ _PRECISION @ moved)

    least = cost(constants)
    for _ in range(50):
        slopes = _slopes(constants, work)
        gradient = slopes.T @ inverse @ (logs - _log_ms(constants, work))
        gradient -= _PRECISION @ (constants - _TYPICAL)
        step = np.linalg.solve(slopes.T @ inverse @ slopes + _PRECISION, gradient)
        while cost(constants + step) > least and np.max(np.abs(step)) > 1e-4:
            step = step / 2
        before, least = least, min(least, cost(constants + step))
        if before - least < 1e-4:  # where 1 would be a standard deviation
            break
        constants = constants + step
    return constants


def _achieved(constants: Array) -> Achieved:
    return Achieved(**dict(zip(_NAMES, np.exp(constants).tolist(), strict=True)))


def _log_ms(constants: Array, work: Work) -> Array:
    return np.asarray(np.log(1e3 * seconds(work, _achieved(constants)).total))


def _slopes(constants: Array, work: Work) -> Array:
    """The derivatives of `_log_ms`; a column for each constant."""
    small, here = 1e-4, _log_ms(constants, work)
    moved = [_log_ms(constants + small * one, work) for one in np.eye(len(constants))]
    return (np.stack(moved, axis=1) - here[:, np.newaxis]) / small


def _places(runs: list[Iteration]) -> Array:
    """Where the iterations are, in units of REACH; a micro-batch counts as its tokens."""
    found = []
    for run in runs:
        given = run.given | {"micro_batch": run.given["micro_batch"] * run.given["sequence"]}
        found.append([math.log2(given[name]) / reach for name, reach in REACH.items()])
    return np.array(found)


def _similarity(some: Array, others: Array) -> Array:
    """The covariance of what iterations share; it falls exponentially with their distance."""
    distances = np.abs(some[:, np.newaxis] - others[np.newaxis]).sum(axis=2)
    return np.asarray(SIMILAR**2 * np.exp(-distances))


def _counted(fits: list[bool], asked: list[Iteration]) -> dict[str, Any]:
    both = list(zip(fits, asked, strict=True))
    planned = sum(fits)
    failed = sum(fit and each.out_of_memory for fit, each in both)
    return {
        "planned": planned,
        "out_of_memory": failed,
        "share": failed / planned if planned else None,
        "measured_without": sum(not fit and each.milliseconds is not None for fit, each in both),
    }


def _predicted(asked: Iteration, times: list[float]) -> dict[str, Any]:
    middle, *interval = times
    true = asked.milliseconds
    error = None if true is None else abs(middle / true - 1)
    own = {TIME: true, "predicted_ms": middle, "interval": interval, "error": error}
    return {**asked.given, **own}
