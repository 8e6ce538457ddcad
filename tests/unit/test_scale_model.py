"""The pure parts of benchmarks/scale.py: costs from measurements, the job of the check, curves."""

import pytest

from benchmarks import _scale_kinds as kinds
from benchmarks._scale_check import factor, paced, simulated
from benchmarks._scale_kinds import Kind, Pair, Sample, Sizes, costs_of
from benchmarks._scale_knee import crossing, last_growth
from tests.message_costs import DEAR
from tfdist.planner.saturation import first_limit
from tfdist.planner.split_job import Machines


def test_the_last_growth_shows_whether_a_curve_still_rises():
    assert last_growth({16: 100.0, 32: 104.0, 8: 80.0}) == 1.04


def test_the_crossing_does_not_depend_on_the_shape_of_the_corner():
    sharp = {1: 10.0, 8: 80.0, 16: 100.0, 32: 100.0}
    round_corner = {1: 10.0, 8: 65.0, 16: 85.0, 32: 100.0}
    falling = {1: 10.0, 16: 100.0, 64: 90.0}
    assert crossing(sharp) == crossing(round_corner) == crossing(falling) == 10


# From measurements to costs, and to the job of the check.

SIZES = Sizes(present=4, many_parties=100, splits=(10, 1000), dense_bytes=(0, 100), rows=(0, 10))


def measured():
    """In ms by kind: CPU time of the ps and of the trainer in a burst, and the latency alone."""
    found = {
        Kind(kinds.RUN): (1.0, 2.0, 4.0),
        Kind(kinds.RUN_ON_TWO): (1.0, 3.0, 6.0),
        Kind(kinds.DIRECT): (0.5, 0.5, 2.0),
        Kind(kinds.UPDATE): (1.1, 2.0, 4.0),
        Kind(kinds.WITH_COMMIT, 10, 4): (2.1, 2.5, 6.0),
        Kind(kinds.COMMIT, 10, 4): (1.4, 1.0, 3.0),
        Kind(kinds.COMMIT, 10, 100): (2.4, 1.0, 4.0),
        Kind(kinds.CLAIM, 10, 4): (2.0, 1.0, 4.0),
        Kind(kinds.CLAIM, 10, 100): (2.96, 1.0, 5.0),
        Kind(kinds.ARRIVAL, 0, 4): (0.9, 0.5, 3.0),
        Kind(kinds.ARRIVAL, 0, 100): (0.9, 0.5, 3.0),
        # Each of two runs has 20 commits, so that one takes a 40th of the wait.
        Kind(kinds.CHAIN, 10, 4): (30.0, 5.0, 40.0),
    }
    for name in (kinds.PULL, kinds.PUSH, kinds.LOOKUP, kinds.SCATTER):
        for count in (0, 10, 100):
            found[Kind(name, count)] = (1.5 + 0.01 * count, 3.0, 5.0 + 0.01 * count)
    # One of three rounds is an outlier. Single messages use more CPU time, which does not count.
    return {
        kind: [
            Pair(Sample(ps * bad, trainer, wall), Sample(2 * ps, 2 * trainer, wall))
            for bad in (1, 1, 50)
        ]
        for kind, (ps, trainer, wall) in (
            (kind, [each / 1e3 for each in row]) for kind, row in found.items()
        )
    }


def test_a_cost_excludes_the_run_that_carries_the_message():
    costs = costs_of(measured(), SIZES)
    assert costs.pull.ps.at(100) == pytest.approx(1.5e-3)
    assert costs.push.ps.at(0) == pytest.approx(0.5e-3)
    assert costs.lookup.trainer.at(10) == pytest.approx(1e-3)
    assert costs.commit.ps.at(4) == pytest.approx(1e-3)
    assert costs.commit.ps.at(100) == pytest.approx(2e-3)
    assert (costs.run.trainer.at(1), costs.run.trainer.at(2)) == pytest.approx((2e-3, 3e-3))


def test_a_delay_is_the_latency_beyond_the_cpu_times():
    costs = costs_of(measured(), SIZES)
    assert costs.run.delay.at(1) == pytest.approx(1e-3)
    assert costs.claim.delay.at(4) == pytest.approx(1e-3)
    assert costs.pull.delay.at(100) == pytest.approx(0, abs=1e-6)  # the CPU times are larger


def test_a_section_is_the_time_with_the_lock_held():
    costs = costs_of(measured(), SIZES)
    assert costs.commit_section.at(4) == pytest.approx(1e-3)
    assert costs.commit_section.at(100) == pytest.approx(2e-3)
    # A commit in its own run takes 0.4 ms outside the section, and so does a claim.
    assert costs.claim_section.at(4) == pytest.approx(1.6e-3)
    assert costs.claim_section.at(100) == pytest.approx(2.56e-3)
    assert costs.arrival_section.at(50) == pytest.approx(0.4e-3)


def test_the_paced_job_is_full_at_the_chosen_number_of_trainers():
    here = Machines(cores=2, is_one=True)
    job = paced(here, DEAR, 16)
    assert job.step_secs > 0.005
    curve = simulated(job, here, DEAR, (2, 8, 16, 32, 64))
    assert curve.crossing == pytest.approx(16, rel=0.12)
    assert first_limit(job, here, DEAR).value == pytest.approx(16, rel=0.12)
    assert factor(8, 10) == factor(10, 8) == 1.25
