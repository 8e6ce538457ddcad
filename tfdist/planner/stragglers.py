"""What it costs that workers do not take equally long: barriers, backups and staleness.

Letters in the formulas: W workers, b of them backup workers, F the fraction of steps that are not
longer. All functions that take a sample compute with its empirical distribution: each step of each
worker is one of the sample, independently. So they know no step longer than the longest of the
sample. Take a sample of many more steps than there are workers.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterable
from typing import Any

from tfdist.errors import ConfigError, checked_integer, checked_number, checked_several
from tfdist.planner.quantity import Quantity

MOST_WORKERS = 10**6
BACKUPS = "arXiv 1604.00981"
QUEUE = "arXiv 1605.09774"
SSP = "Ho et al. 2013, NIPS 26, section 2"
_BATCHES = 20  # of a simulation, whose spread is its interval
_STUDENT_T = 2.093  # 95 % of Student's t with 19 degrees of freedom are within


def barrier_seconds(sample: Iterable[float], workers: int, backups: int = 0) -> Quantity:
    """Mean seconds of a step with a barrier, exactly: the last worker that it waits for.

    Args:
        sample: seconds of steps of one worker.
        workers: all workers, with the backups.
        backups: the step ends when all but so many workers have ended; the others start anew.

    Raises:
        ConfigError: a value is out of range, or the sample is empty.
    """
    times = _checked_sample(sample)
    workers, backups = _checked_counts(workers, backups)
    total = _step_seconds(times, workers, backups)[backups]
    values = {"W": workers, "b": backups, "steps of the sample": len(times)}
    if backups:
        formula = "sum of x (G(x) - G(before x)), G = P(at least W - b of W are on time)"
        return Quantity("step", total, "seconds", formula, values, BACKUPS)
    formula = "sum of x (F(x)^W - F(before x)^W)"
    return Quantity("step", total, "seconds", formula, values)


def best_backups(sample: Iterable[float], workers: int) -> Quantity:
    """The number of backup workers with which most gradients are used in a second.

    A barrier with backups drops the gradients of the b slowest workers. It is worth it if the step
    gets shorter by more than b / W.

    Raises:
        ConfigError: as `barrier_seconds`.
    """
    times = _checked_sample(sample)
    workers, _ = _checked_counts(workers, 0)
    barrier = _step_seconds(times, workers, 0)[0]
    # No step is shorter than the shortest, so more backups than this cannot pay.
    most_backups = min(workers - 1, int(workers * (1 - times[0] / barrier)))
    seconds = _step_seconds(times, workers, most_backups)
    rates = [(workers - backups) / each for backups, each in enumerate(seconds)]
    most = max(rates)
    best = rates.index(most)
    values = {"W": workers, "gradients per second": most}
    formula = "b with the largest (W - b) / E[seconds until W - b have ended]"
    return Quantity("backup workers", best, "workers", formula, values, BACKUPS)


def exponential_barrier_seconds(mean: float, workers: int, backups: int = 0) -> Quantity:
    """As `barrier_seconds`, if a step is exponentially distributed: a closed form.

    Raises:
        ConfigError: a number is out of range.
    """
    mean = _checked_seconds("mean", mean)
    workers, backups = _checked_counts(workers, backups)
    value = mean * math.fsum(1 / k for k in range(backups + 1, workers + 1))
    values = {"x": mean, "W": workers, "b": backups}
    source = "H_n = 1 + 1/2 + ... + 1/n; Renyi 1953"
    return Quantity("step", value, "seconds", "x (H_W - H_b)", values, source)


def normal_barrier_seconds(mean: float, deviation: float, workers: int) -> Quantity:
    """As `barrier_seconds` without backups, if a step is normally distributed: an integral.

    Args:
        mean: seconds of a step.
        deviation: its standard deviation.
        workers: all workers.

    Raises:
        ConfigError: a number is out of range.
    """
    mean = _checked_seconds("mean", mean)
    deviation = _checked_seconds("deviation", deviation)
    workers, _ = _checked_counts(workers, 0)

    def not_all_below(x: float) -> float:
        above = math.erfc(x / math.sqrt(2)) / 2
        return -math.expm1(workers * math.log1p(-above)) if above < 1 else 1.0

    # E[max] is the integral of P(max > x) over x > 0, less that of P(max < x) over x < 0. The sum
    # of a smooth function that vanishes at both ends is almost its integral.
    step = 1 / 64
    points = [step * k + step / 2 for k in range(64 * 12)]
    largest = step * math.fsum(not_all_below(x) - (1 - not_all_below(-x)) for x in points)
    values = {"mean": mean, "deviation": deviation, "W": workers, "e": largest}
    formula = "mean + deviation e, e = E[largest of W standard normal numbers]"
    value = mean + deviation * largest
    source = "Royston 1982, Appl. Statist. 31(2)"
    return Quantity("step", value, "seconds", formula, values, source)


def mean_staleness(workers: int) -> Quantity:
    """Updates of others between a worker's read and its update, on average over all updates.

    It holds for all step times, equal or not: when a worker updates, each of the others has one
    step in progress, so each update counts in W - 1 steps.

    Raises:
        ConfigError: the number of workers is out of range.
    """
    workers, _ = _checked_counts(workers, 0)
    return Quantity("staleness", workers - 1, "updates", "W - 1", {"W": workers})


def worker_staleness(rates: Iterable[float], worker: int) -> Quantity:
    """The same for the updates of one worker: a slow worker's are staler.

    Args:
        rates: steps per second of each worker.
        worker: its index.

    Raises:
        ConfigError: a value is out of range.
    """
    found = _checked_rates(rates)
    own = found[checked_integer("worker", worker, 0, len(found) - 1)]
    total = math.fsum(found)
    values = {"R": total, "r": own}
    return Quantity("staleness", (total - own) / own, "updates", "(R - r) / r", values, QUEUE)


def staleness_at_most(rates: Iterable[float], most: int) -> Quantity:
    """The fraction of all updates whose staleness is at most this, with exponential step times.

    Then the next update is that of worker i with probability r_i / R, whatever came before, and the
    staleness of its updates has a geometric distribution.

    Args:
        rates: steps per second of each worker.
        most: number of updates.

    Raises:
        ConfigError: a value is out of range.
    """
    found = _checked_rates(rates)
    most = checked_integer("most", most, 0, 10**9)
    total = math.fsum(found)
    value = math.fsum(r / total * (1 - (1 - r / total) ** (most + 1)) for r in found)
    formula, values = "sum of r_i / R (1 - (1 - r_i / R)^(k + 1))", {"R": total, "k": most}
    return Quantity("updates", value, "of all updates", formula, values, QUEUE)


def bounded_staleness_seconds(
    sample: Iterable[float], workers: int, staleness: int, *, steps: int = 4000, seed: int = 0
) -> Quantity:
    """Mean seconds of a step of a worker that may be `staleness` steps ahead; a simulation.

    A worker starts step c when all workers have ended step c - 1 - staleness. With 0 that is a
    barrier in every step. The parts are compute and wait; the interval has a confidence of 95 %.

    The first half of the steps only fills the lead of the fast workers. A large staleness with even
    step times needs more of them: about (staleness times mean / deviation)^2.

    Args:
        sample: seconds of steps of one worker.
        workers: all workers.
        staleness: steps that the fastest worker may be ahead of the slowest.
        steps: of each worker, simulated.
        seed: of the random numbers.

    Raises:
        ConfigError: a value is out of range, or the sample is empty.
    """
    times = _checked_sample(sample)
    workers, _ = _checked_counts(workers, 0)
    staleness = checked_integer("staleness", staleness, 0, 10**6)
    steps = checked_integer("steps", steps, 2 * _BATCHES, 10**7)
    chance = random.Random(checked_integer("seed", seed, 0, 2**63 - 1))
    ended = [0.0] * workers
    all_ended: list[float] = []  # when each step has ended on all workers
    waited: list[float] = []  # by all workers together, in each step
    for step in range(steps):
        before = step - 1 - staleness
        start = all_ended[before] if before >= 0 else 0.0
        waited.append(math.fsum(max(0.0, start - end) for end in ended))
        drawn = chance.choices(times, k=workers)
        ended = [max(start, end) + each for end, each in zip(ended, drawn, strict=True)]
        all_ended.append(max(ended))
    size = steps // (2 * _BATCHES)
    counted = waited[-size * _BATCHES :]
    batches = [
        math.fsum(counted[first : first + size]) / (size * workers)
        for first in range(0, len(counted), size)
    ]
    wait = statistics.fmean(batches)
    error = _STUDENT_T * statistics.stdev(batches) / math.sqrt(_BATCHES)
    compute = math.fsum(times) / len(times)
    values = {"W": workers, "s": staleness, "steps": steps, "seed": seed}
    parts = (
        Quantity("compute", compute, "seconds", "mean of the sample"),
        Quantity("wait", wait, "seconds", "simulated", values, SSP),
    )
    interval = (compute + max(0.0, wait - error), compute + wait + error)
    total = compute + wait
    return Quantity("step", total, "seconds", source=SSP, parts=parts, interval=interval)


def _step_seconds(times: list[float], workers: int, most_backups: int) -> list[float]:
    """Mean seconds until all but b workers have ended, for b from 0 to `most_backups`."""
    logs = [_log_choose(workers, late) for late in range(most_backups + 1)]
    totals = [0.0] * len(logs)
    before = [0.0] * len(logs)
    for index, seconds in enumerate(times, start=1):
        up_to = _on_time(index / len(times), workers, logs)
        for b, fraction in enumerate(up_to):
            totals[b] += seconds * (fraction - before[b])
        before = up_to
    return totals


def _on_time(fraction: float, workers: int, logs: list[float]) -> list[float]:
    """P(at most b of the workers are late) for each b, if each is on time with `fraction`."""
    if fraction == 1:
        return [1.0] * len(logs)
    early, late = math.log(fraction), math.log1p(-fraction)
    terms = (math.exp(c + (workers - k) * early + k * late) for k, c in enumerate(logs))
    return list(itertools.accumulate(terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _checked_counts(workers: Any, backups: Any) -> tuple[int, int]:
    workers = checked_integer("workers", workers, 1, MOST_WORKERS)
    return workers, checked_integer("backups", backups, 0, workers - 1)


def _checked_seconds(field: str, value: Any) -> float:
    rule = "must be a positive number of seconds"
    return checked_number(field, value, lambda n: 0 < n < 1e9, rule)


def _checked_sample(sample: Any) -> list[float]:
    """The sample in order."""
    rule = "must be a list of positive numbers of seconds"
    found = [_checked_seconds("sample", each) for each in checked_several("sample", sample, rule)]
    if not found:
        raise ConfigError("sample", sample, rule)
    return sorted(found)


def _checked_rates(rates: Any) -> list[float]:
    rule = "must be a list of positive numbers of steps per second"
    found = [
        checked_number("rates", each, lambda n: 0 < n < 1e12, rule)
        for each in checked_several("rates", rates, rule)
    ]
    if not found:
        raise ConfigError("rates", rates, rule)
    return found
