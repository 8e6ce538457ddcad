"""The time of a step of a ps job: counts, queues, calibration from known costs, and bad input."""

import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    EmbeddingTable,
    IdDistribution,
    Machines,
    MeasuredStep,
    PsJob,
    StepCosts,
    StepUnits,
    calibrate_ps,
    predict_step_secs,
    step_limits,
    step_units,
    worker_received,
    worker_sent,
)
from tfdist.planner.ps_calibration import FEWEST_JOBS, nonnegative_fit
from tfdist.planner.queues import Clock, Station, residence_secs

HERE = Machines(cores=2, is_one=True)
ZIPF = IdDistribution.zipf(5000, 1.0)
# Of the order of the measured costs.
COSTS = StepCosts(
    worker=StepUnits(1.4e-3, 0.9e-3, 9e-5, 4e-7, 4e-10, 5e-11),
    ps=StepUnits(0.0, 1.3e-3, 8e-5, 5e-7, 1e-9, 0.0),
    overhead=1.05,
    delay_secs=1e-3,
    error=0.1,
)


def job_of(workers=4, ps=2, tables=3, batch=256, dim=16):
    return PsJob(
        dense=(tables * dim + 2) * 64 + 1,
        variables=4,
        tables=(EmbeddingTable(5000, dim, distribution=ZIPF),) * tables,
        workers=workers,
        ps=ps,
        batch=batch,
    )


JOB = job_of()
DESIGN = [
    job_of(*(low + bit * (high - low) for (low, high), bit in zip(levels, bits, strict=True)))
    for levels in [((1, 6), (1, 4), (1, 8), (64, 1024), (8, 64))]
    for a, b, c in itertools.product((0, 1), repeat=3)
    for bits in [(a, b, c, a ^ b, a ^ c)]
]


def measured(job, costs=COSTS, noise=0.0, chance=None):
    units = step_units(job)
    factors = [math.exp(chance.gauss(0, noise)) if noise else 1.0 for _ in range(3)]
    exact = predict_step_secs(job, HERE, costs).value, units @ costs.worker, units @ costs.ps
    return MeasuredStep(job, *(secs * each for secs, each in zip(exact, factors, strict=True)))


# Counts.


@pytest.mark.parametrize(
    ("ps", "tables", "messages"),
    # As counted in the graphs of TensorFlow 2.21, of jobs with four dense variables.
    [(1, 1, 12), (1, 4, 21), (2, 1, 17), (2, 4, 35), (4, 1, 25), (4, 2, 37), (4, 4, 61)],
)
def test_the_messages_of_a_step_are_those_of_tensorflow(ps, tables, messages):
    assert step_units(job_of(ps=ps, tables=tables)).message == messages


def test_a_step_is_counted_in_units():
    table = EmbeddingTable(1000, 8, unique=50)
    units = step_units(PsJob(dense=100, variables=2, tables=(table,) * 2, ps=3, batch=64))
    assert units == StepUnits(
        step=1,
        ps=3,
        message=3 * 3 * 2 + 2 * 2 + 4,
        row=2 * 50,
        byte=2 * 4 * (100 + 2 * 50 * 8) + 8 * 100,
        flop=6 * 100 * 64,
    )


def test_a_job_without_dense_variables_sends_none():
    units = step_units(PsJob(tables=(EmbeddingTable(100, 4),), batch=10))
    assert (units.message, units.flop) == (3 + 1, 0)
    assert units.byte == 10 * (2 * 4 * 4 + 8)


def test_bytes_are_those_of_the_traffic_with_the_ids_sent_once_and_without_headers():
    bare = replace(JOB, header_bytes=0)
    ids = 8 * step_units(bare).row
    both = worker_sent(bare).value + worker_received(bare).value
    assert step_units(bare).byte == pytest.approx(both - ids)


# Queues.


@pytest.mark.parametrize("customers", [1, 2, 5, 12])
def test_mean_values_are_those_of_the_machine_repair_model(customers):
    """A station and a delay have a closed form; its customers fail, and wait for one repairman."""
    demand, delay = 0.3, 1.0
    weights = [
        math.perm(customers, waiting) * (demand / delay) ** waiting
        for waiting in range(customers + 1)
    ]
    rate = (1 - 1 / sum(weights)) / demand
    (found,) = residence_secs([demand], delay, customers)
    assert found == pytest.approx(customers / rate - delay)


def test_mean_values_are_those_of_a_simulation():
    chance, clock, cycles = random.Random(5), Clock(), 40_000
    stations, demands = [Station(clock), Station(clock)], [0.5, 0.3]
    left = cycles

    def cycle():
        nonlocal left
        left -= 1
        if left > 0:
            clock.after(chance.expovariate(1.0), serve)

    def serve():
        stations[0].request(
            chance.expovariate(1 / demands[0]),
            lambda: stations[1].request(chance.expovariate(1 / demands[1]), cycle),
        )

    for _ in range(3):
        cycle()
    clock.run()
    found = sum(residence_secs(demands, 1.0, 3)) + 1.0
    assert found == pytest.approx(3 * clock.now / cycles, rel=0.02)


def test_mean_values_without_work_and_without_delay():
    assert residence_secs([0.0], 0.0, 3) == [0.0]
    assert residence_secs([2.0], 0.0, 3) == [pytest.approx(6.0)]


# Prediction.


def test_one_worker_takes_its_work_on_all_cores_and_the_delay():
    units = step_units(job_of(workers=1))
    work = 1.05 * (units @ COSTS.worker + units @ COSTS.ps) / 2
    assert predict_step_secs(job_of(workers=1), HERE, COSTS).value == pytest.approx(work + 1e-3)


def test_many_workers_share_the_cores():
    units = step_units(JOB)
    work = 1.05 * (units @ COSTS.worker + units @ COSTS.ps) / 2
    found = predict_step_secs(replace(JOB, workers=200), HERE, COSTS).value
    assert found == pytest.approx(200 * work, rel=1e-3)


def test_the_counted_recursion_goes_on_as_a_straight_line():
    ends = [
        predict_step_secs(replace(JOB, workers=n), HERE, COSTS) for n in (9_999, 10_000, 10_001)
    ]
    first, second, third = map(float, ends)
    assert third - second == pytest.approx(second - first, rel=1e-6)
    huge = predict_step_secs(replace(JOB, workers=10**9), HERE, COSTS).value
    assert huge == pytest.approx(1e5 * second, rel=1e-3)


def test_a_prediction_explains_itself():
    found = predict_step_secs(JOB, HERE, COSTS)
    assert found.unit == "seconds"
    assert found.value == pytest.approx(sum(map(float, found.parts)))
    at_cpu, rest = found.parts
    assert at_cpu.name == "at the CPU of the machine"
    assert at_cpu.value > at_cpu.values["D"]
    assert rest.value == COSTS.delay_secs
    low, high = found.interval
    assert (low, high) == pytest.approx((found.value / math.exp(0.1), found.value * math.exp(0.1)))


def test_on_machines_of_their_own_more_workers_wait_for_the_ps_alone():
    apart = Machines(cores=4, bytes_per_sec=1e9)
    alone, few, many = (
        predict_step_secs(replace(JOB, workers=n), apart, COSTS).value for n in (1, 4, 400)
    )
    units = step_units(JOB)
    assert alone == pytest.approx(
        1e-3
        + 1.05 * (units @ COSTS.worker + (units @ COSTS.ps) / JOB.ps)
        + units.byte / JOB.ps / 1e9
    )
    assert alone < few < predict_step_secs(JOB, replace(HERE, cores=4), COSTS).value
    assert many == pytest.approx(400 * 1.05 * (units @ COSTS.ps) / JOB.ps / 4, rel=0.01)


# What saturates first.


def test_the_cores_of_one_machine_saturate_first():
    (limit,) = step_limits(JOB, HERE, COSTS)
    assert limit.name == "CPU of the machine"
    assert limit.value == pytest.approx(limit.values["cycle"] / limit.values["demand"])
    assert 1 < limit.value < 2


@pytest.mark.parametrize(
    ("bandwidth", "first"), [(1e10, "CPU of a ps"), (1e6, "network into a ps")]
)
def test_a_slow_network_saturates_before_the_ps(bandwidth, first):
    limits = step_limits(JOB, Machines(cores=4, bytes_per_sec=bandwidth), COSTS)
    assert limits[0].name == first
    assert [each.value for each in limits] == sorted(each.value for each in limits)
    assert {each.unit for each in limits} == {"workers"}


def test_a_free_resource_never_saturates():
    limits = step_limits(JOB, Machines(bytes_per_sec=math.inf), COSTS)
    assert [each.name for each in limits if each.value == math.inf] == [
        "network into a ps",
        "network out of a ps",
    ]


# Calibration.


def test_known_costs_are_recovered_from_exact_jobs():
    found = calibrate_ps([measured(job) for job in DESIGN], HERE)
    assert found.overhead == pytest.approx(COSTS.overhead, rel=1e-6)
    assert found.delay_secs == pytest.approx(COSTS.delay_secs, rel=1e-5)
    for task in ("worker", "ps"):
        for unit in ("step", "ps", "message", "row", "byte", "flop"):
            known = getattr(getattr(COSTS, task), unit)
            assert getattr(getattr(found, task), unit) == pytest.approx(known, rel=1e-4, abs=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_noisy_jobs_predict_others_within_their_error(seed):
    chance = random.Random(seed)
    found = calibrate_ps([measured(job, noise=0.03, chance=chance) for job in DESIGN], HERE)
    others = [job_of(w, s, t, 200, 24) for w, s, t in [(1, 2, 3), (3, 1, 5), (5, 3, 2), (8, 4, 8)]]
    for job in others:
        exact = predict_step_secs(job, HERE, COSTS).value
        predicted = predict_step_secs(job, HERE, found)
        assert predicted.value == pytest.approx(exact, rel=0.12)
    assert 0.01 < found.error < 1


def test_an_outlier_shows_in_the_error():
    jobs = [measured(job) for job in DESIGN]
    assert calibrate_ps(jobs, HERE).error < 0.01
    jobs[3] = replace(jobs[3], step_secs=2 * jobs[3].step_secs)
    assert calibrate_ps(jobs, HERE).error > 0.3


def test_costs_survive_json():
    assert StepCosts.from_json(json.loads(json.dumps(COSTS.to_json()))) == COSTS
    with pytest.raises(KeyError):
        StepCosts.from_json({"worker": {}, "ps": {}})


# Non-negative least squares.


def best_of_all_subsets(rows, values):
    """The same by exhaustion: the best fit of each subset of unknowns that has none below 0."""
    matrix, count = np.array(rows) / np.array(values)[:, None], len(rows[0])
    best, least = np.zeros(count), float(len(values))
    for chosen in itertools.product((False, True), repeat=count):
        free = np.array(chosen)
        if not free.any():
            continue
        found = np.zeros(count)
        found[free] = np.linalg.lstsq(matrix[:, free], np.ones(len(values)), rcond=None)[0]
        residual = ((matrix @ found - 1) ** 2).sum()
        if (found >= 0).all() and residual < least:
            best, least = found, residual
    return best


@pytest.mark.parametrize("seed", range(30))
def test_the_fit_is_the_best_of_all_without_negative_numbers(seed):
    chance = np.random.default_rng(seed)
    rows, values = chance.normal(1, 1, [8, 4]), chance.uniform(1, 3, 8)
    assert nonnegative_fit(rows, values) == pytest.approx(best_of_all_subsets(rows, values))


def test_some_fits_would_be_negative_without_the_constraint():
    """So the test above would notice a fit without it."""
    found = [
        nonnegative_fit(np.random.default_rng(s).normal(1, 1, [8, 4]), [1.0] * 8) for s in (0, 1)
    ]
    assert any(0.0 in each for each in found)


def test_an_unknown_without_data_costs_nothing():
    assert nonnegative_fit([[1.0, 0.0], [2.0, 0.0]], [3.0, 6.0]) == pytest.approx([3.0, 0.0])


# Input.

GOOD = [measured(job) for job in DESIGN]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: calibrate_ps(GOOD[: FEWEST_JOBS - 1], HERE), "measured"),
        (lambda: calibrate_ps(5, HERE), "measured"),
        (lambda: calibrate_ps([*GOOD[:-1], JOB], HERE), "measured"),
        (lambda: calibrate_ps(GOOD, None), "machines"),
        (lambda: predict_step_secs(JOB, 2, COSTS), "machines"),
        (lambda: predict_step_secs("job", HERE, COSTS), "job"),
        (lambda: predict_step_secs(JOB, HERE, {}), "costs"),
        (lambda: step_limits(JOB, HERE, None), "costs"),
        (lambda: MeasuredStep("job", 1.0, 1.0, 1.0), "job"),
        (lambda: MeasuredStep(JOB, 0.0, 1.0, 1.0), "step_secs"),
        (lambda: MeasuredStep(JOB, 1.0, -1.0, 1.0), "worker_secs"),
        (lambda: MeasuredStep(JOB, 1.0, 1.0, math.nan), "ps_secs"),
        (lambda: replace(COSTS, worker=1.0), "worker"),
        (lambda: replace(COSTS, ps=StepUnits(row=-1.0)), "ps.row"),
        (lambda: replace(COSTS, worker=StepUnits(byte=math.inf)), "worker.byte"),
        (lambda: replace(COSTS, overhead=0.0), "overhead"),
        (lambda: replace(COSTS, delay_secs=math.nan), "delay_secs"),
        (lambda: replace(COSTS, error="0.1"), "error"),
    ],
)
def test_bad_input_is_a_config_error(call, field):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
