"""The model of benchmarks/scale.py, against closed formulas of queueing theory."""

import json
import math
import random
from dataclasses import replace

import pytest

from benchmarks import _scale_kinds as kinds
from benchmarks._scale_check import factor, paced, simulated
from benchmarks._scale_costs import Cost, Costs, Line
from benchmarks._scale_job import Job, Machines, messages
from benchmarks._scale_kinds import Kind, Pair, Sample, Sizes, costs_of
from benchmarks._scale_knee import crossing, last_growth
from benchmarks._scale_limits import (
    ARRIVALS,
    changes,
    cycle_secs,
    demands,
    limits,
)
from benchmarks._scale_model import (
    CPU_0,
    CPU_OTHERS,
    INWARD,
    OUTWARD,
    TABLE_LOCK,
    WORK,
    simulate,
)
from benchmarks._scale_queues import Clock, Lock, Meeting, Station
from tfdist.errors import ConfigError

NOTHING = Cost(Line(), Line(), Line())
FREE = Costs(*[NOTHING] * 8, *[Line()] * 3)
FAST = Machines(bytes_per_sec=math.inf)
# Of the order of the measured costs.
DEAR = Costs(
    run=Cost(Line(2e-4), Line(3e-4, 1e-4), Line(2e-4)),
    pull=Cost(Line(2e-5, 2e-10), Line(1e-4, 3e-10), Line()),
    push=Cost(Line(3e-4, 9e-10), Line(3e-4, 3e-10), Line()),
    lookup=Cost(Line(3e-4, 1e-7), Line(3e-4, 1e-7), Line()),
    scatter=Cost(Line(5e-4, 3e-7), Line(4e-4, 1e-7), Line()),
    commit=Cost(Line(8e-4, 5e-8), Line(1e-3), Line()),
    claim=Cost(Line(9e-4, 9e-8), Line(6e-4), Line(2e-4)),
    arrival=Cost(Line(5e-4, 3e-8), Line(2e-4), Line(2e-4)),
    commit_section=Line(6e-4, 5e-8),
    claim_section=Line(5e-4, 9e-8),
    arrival_section=Line(2e-4, 3e-8),
)
STEADY = Job(jitter=0.0, variables=1, dense_bytes=0, rows=0, step_secs=0.09, barrier_steps=200)


def of_ps(secs, slope=0.0):
    return Cost(Line(secs, slope), Line(), Line())


def with_locked(name, secs, slope=0.0):
    """Costs of one kind of message alone, which holds its lock all the time."""
    return replace(FREE, **{name: of_ps(secs, slope), f"{name}_section": Line(secs, slope)})


# Stations, locks, meetings.


def mean_wait(servers, gaps, services):
    clock = Clock()
    station = Station(clock, servers)

    def come():
        gap = next(gaps, None)
        if gap is not None:
            clock.after(gap, come)
            station.request(next(services), lambda: None)

    come()
    clock.run()
    return station.waited_secs / station.served


def test_one_server_with_equal_services_follows_pollaczek_and_khinchine():
    chance, use, service, requests = random.Random(1), 0.6, 2.0, 40_000
    gaps = (chance.expovariate(use / service) for _ in range(requests))
    found = mean_wait(1, gaps, iter(lambda: service, None))
    assert found == pytest.approx(use * service / (2 * (1 - use)), rel=0.04)


def test_two_servers_follow_erlang():
    chance, use, requests = random.Random(3), 0.6, 60_000
    gaps = (chance.expovariate(2 * use) for _ in range(requests))
    services = iter(lambda: chance.expovariate(1.0), None)
    assert mean_wait(2, gaps, services) == pytest.approx(use**2 / (1 - use**2), rel=0.06)


def test_a_first_request_goes_before_waiting_ones_and_interrupts_none():
    clock, ends = Clock(), []
    station = Station(clock)
    for name in "ab":
        station.request(2.0, lambda name=name: ends.append((name, clock.now)))
    station.request(1.0, lambda: ends.append(("first", clock.now)), first=True)
    clock.run()
    assert ends == [("a", 2.0), ("first", 3.0), ("b", 5.0)]


def test_a_completed_request_may_go_first_again():
    """The next holder of a lock gets the core before the requests that wait for a core."""
    clock, ends = Clock(), []
    station = Station(clock)
    station.request(1.0, lambda: station.request(1.0, lambda: ends.append("section"), first=True))
    station.request(1.0, lambda: ends.append("other"))
    clock.run()
    assert ends == ["section", "other"]


def test_a_repeated_request_queues_at_the_end():
    clock, ends = Clock(), []
    station = Station(clock)
    station.request(1.0, lambda: station.request(1.0, lambda: ends.append("again")))
    station.request(1.0, lambda: ends.append("other"))
    clock.run()
    assert ends == ["other", "again"]


def test_a_lock_is_held_by_one_at_a_time_in_order():
    clock, held = Clock(), []
    lock = Lock(clock)

    def within(name):
        held.append((name, clock.now))
        clock.after(1.5, lock.release)

    for name in "abc":
        lock.acquire(lambda name=name: within(name))
    clock.run()
    assert held == [("a", 0.0), ("b", 1.5), ("c", 3.0)]
    assert lock.held_secs == 4.5


def test_a_meeting_releases_all_parties_together_and_is_reusable():
    calls = []
    meeting = Meeting(2, lambda: calls.append("complete"))
    for name in "abcd":
        meeting.arrive(lambda name=name: calls.append(name))
        if name == "a":
            assert calls == []
    assert calls == ["complete", "a", "b", "complete", "c", "d"]


# A job.


def test_a_closed_system_is_full_from_its_saturation_point():
    """The point is (Z + S) / S trainers, for S seconds at the server and Z seconds elsewhere."""
    costs, many_cores = with_locked("commit", 0.01), replace(FAST, cores=64)
    curve = {
        n: simulate(replace(STEADY, trainers=n), many_cores, costs).steps_per_sec
        for n in (1, 5, 10, 20, 40)
    }
    assert curve[1] == pytest.approx(10, rel=1e-6)
    assert curve[5] == pytest.approx(50, rel=0.01)
    assert curve[40] == pytest.approx(100, rel=0.01)
    assert crossing(curve) == pytest.approx(10, rel=0.01)
    first, *_ = limits(STEADY, many_cores, costs)
    assert (first.resource, first.trainers) == (TABLE_LOCK, pytest.approx(10, abs=0.5))


def test_a_locked_section_serves_one_message_at_a_time_on_any_number_of_cores():
    on = Machines(cores=8)
    job = replace(STEADY, trainers=80)
    outside = replace(FREE, run=of_ps(0.01))
    assert simulate(job, on, outside).steps_per_sec == pytest.approx(800, rel=0.02)
    within = with_locked("commit", 0.01)
    assert simulate(job, on, within).steps_per_sec == pytest.approx(100, rel=0.02)


def test_the_holder_of_a_lock_gets_the_next_core():
    costs = replace(with_locked("commit", 0.001), run=of_ps(0.01))
    job = replace(STEADY, trainers=100, step_secs=0.0)
    found = simulate(job, replace(FAST, cores=4), costs)
    assert found.steps_per_sec == pytest.approx(4 / 0.011, rel=0.05)
    assert found.shares["variables"] > 0.9  # the wait for a core


def test_a_trainer_waits_for_the_slowest_ps():
    """Ps 0 is full of commits and the other is idle; half of the waits are pulls."""
    costs = replace(FREE, run=of_ps(0.01), commit=of_ps(0.01))
    job = replace(STEADY, trainers=100, num_ps=2)
    found = simulate(job, replace(FAST, cores=1), costs)
    assert found.use[CPU_OTHERS] == pytest.approx(0.5, rel=0.05)
    assert found.shares["variables"] == pytest.approx(found.shares["splits"], rel=0.2)


def test_a_meeting_costs_the_sum_of_its_arrivals():
    """The rate is N E / (E Z + N A): E steps of Z seconds between meetings, arrivals of A."""
    job = replace(STEADY, trainers=50, barrier_steps=10, split_steps=10)
    costs = with_locked("arrival", 0.018)
    found = simulate(job, FAST, costs, intervals=3)
    assert found.steps_per_sec == pytest.approx(50 * 10 / (10 * 0.09 + 50 * 0.018), rel=1e-6)
    assert found.shares["barrier"] == pytest.approx(0.5, abs=1e-6)
    (limit,) = (each for each in limits(job, FAST, costs) if each.resource == ARRIVALS)
    assert limit.trainers == pytest.approx(51, abs=1)  # a single trainer pays for one arrival


def test_the_network_limits_the_bytes_in_each_direction():
    job = replace(STEADY, trainers=30, dense_bytes=10**7)
    found = simulate(job, Machines(bytes_per_sec=1e8), FREE)
    assert found.steps_per_sec == pytest.approx(10, rel=0.02)
    assert max(found.use[INWARD], found.use[OUTWARD]) > 0.98
    spread_out = simulate(replace(job, num_ps=4), Machines(bytes_per_sec=1e8), FREE)
    assert spread_out.steps_per_sec == pytest.approx(40, rel=0.02)


def test_on_one_machine_the_trainers_share_the_cores_without_a_network():
    costs = replace(FREE, run=Cost(Line(0.002), Line(0.003), Line(0.004)))
    here = Machines(cores=2, bytes_per_sec=1.0, is_one=True)
    job = replace(STEADY, dense_bytes=10**7)
    alone = simulate(replace(job, trainers=1), here, costs)
    assert 1 / alone.steps_per_sec == pytest.approx(0.099)
    full = simulate(replace(job, trainers=100), here, costs)
    assert full.steps_per_sec == pytest.approx(2 / 0.005, rel=0.01)


@pytest.mark.parametrize("num_ps", [1, 2, 16])
def test_no_message_is_lost_and_none_is_served_twice(num_ps):
    job = Job(trainers=12, num_ps=num_ps, barrier_steps=24, split_steps=8, commit_steps=2)
    run = simulate(job, Machines(), DEAR, intervals=2)
    steps = 12 * 24 * 2
    assert run.steps == steps
    claims, commits, arrivals = steps // 8, steps // 2, steps // 24
    # A message with a section requests the CPU twice; a commit travels with the update.
    assert run.served[CPU_0] == 2 * steps + 2 * (claims + commits + arrivals)
    assert run.served[INWARD] == 2 * steps + claims + arrivals
    assert run.served[OUTWARD] == steps + claims + arrivals
    assert run.served.get(CPU_OTHERS) == (None if num_ps == 1 else 2 * steps)


@pytest.mark.parametrize(
    ("machines", "num_ps"),
    [(Machines(), 1), (Machines(), 3), (Machines(cores=2, is_one=True), 1)],
)
def test_each_resource_follows_the_utilization_law(machines, num_ps):
    """This ties the arithmetic to the simulation."""
    job = Job(trainers=40, num_ps=num_ps, barrier_steps=32)
    run = simulate(job, machines, DEAR)
    demanded = demands(job, machines, DEAR)
    shared = (set(run.use) & set(demanded)) - {TABLE_LOCK}
    assert {CPU_0} <= shared
    for name in shared:
        assert run.use[name] == pytest.approx(run.steps_per_sec * demanded[name], rel=1e-6), name
    # The holder of the lock may wait for a core.
    assert run.use[TABLE_LOCK] >= 0.999 * run.steps_per_sec * demanded[TABLE_LOCK]
    assert sum(run.shares.values()) == pytest.approx(1)
    assert run.shares[WORK] == pytest.approx(run.steps_per_sec / 40 * job.step_secs, rel=0.02)


def test_one_trainer_takes_the_computed_cycle():
    job = Job(trainers=1, num_ps=4, jitter=0.0, barrier_steps=16)
    alone = simulate(job, Machines(), DEAR)
    assert 1 / alone.steps_per_sec == pytest.approx(cycle_secs(job, Machines(), DEAR), rel=1e-3)


def test_the_tightest_resource_bounds_the_rate():
    job = Job(trainers=600, num_ps=2, barrier_steps=16)
    run = simulate(job, Machines(), DEAR)
    (tightest, demand) = max(demands(job, Machines(), DEAR).items(), key=lambda item: item[1])
    assert run.steps_per_sec <= 1 / demand
    assert run.steps_per_sec == pytest.approx(1 / demand, rel=0.1)
    assert limits(job, Machines(), DEAR)[0].resource == tightest == TABLE_LOCK


def test_a_run_follows_from_its_seed():
    job = Job(trainers=8, barrier_steps=16)
    first, again, other = (simulate(job, Machines(), DEAR, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


# Limits and changes.


def test_more_ps_help_against_a_full_network_but_not_a_full_table():
    heavy = Job(dense_bytes=50 << 20)
    assert limits(heavy, Machines(), DEAR)[0].resource == INWARD
    best, *_, worst = changes(heavy, Machines(), DEAR)
    assert best.name == "twice as many ps"
    assert best.trainers > 1.4 * worst.trainers
    light = Job(dense_bytes=1 << 10, num_ps=4)
    now = limits(light, Machines(), DEAR)[0]
    assert now.resource == TABLE_LOCK
    by_name = {change.name: change.trainers for change in changes(light, Machines(), DEAR)}
    assert max(by_name, key=by_name.get) == "a commit half as often"
    assert by_name["twice as many ps"] < 1.1 * now.trainers


def test_a_cost_that_grows_with_the_trainers_lowers_the_limit():
    steady = with_locked("commit", 1e-3)
    growing = with_locked("commit", 1e-3, 1e-5)
    job = replace(STEADY, trainers=1, step_secs=0.1)
    # N (1e-3 + 1e-5 N) = 0.1 + 1e-3 + 1e-5 N has its solution at 63; without the slope 101.
    assert limits(job, Machines(), steady)[0].trainers == pytest.approx(101, abs=1)
    assert limits(job, Machines(), growing)[0].trainers == pytest.approx(62.1, abs=1)


def test_a_free_resource_has_no_limit():
    assert limits(STEADY, Machines(is_one=True), FREE)[0].trainers == float("inf")


# Costs and curves.


def test_a_line_goes_through_two_points():
    line = Line.through({16: 2e-3, 4096: 4e-3})
    assert line.at(16) == pytest.approx(2e-3)
    assert line.at(4096) == pytest.approx(4e-3)


@pytest.mark.parametrize(
    ("points", "line"),
    [
        ({7: 3.0}, (3.0, 0.0)),
        ({1: 3.0, 2: 2.0}, (2.3077, 0.0)),  # the best line falls
        ({1: 1.0, 3: 6.0}, (0.0, 1.2)),  # the best line starts below zero
        ({1: 0.0, 9: -1.0}, (0.0, 0.0)),
    ],
)
def test_a_line_never_falls_and_never_starts_below_zero(points, line):
    found = Line.through(points)
    assert (found.base, found.slope) == pytest.approx(line, abs=1e-4)


def test_small_sizes_count_as_much_as_large_ones():
    found = Line.through({1: 1.0, 1000: 2.0, 10**6: 1000.0})
    assert found.at(1) == pytest.approx(1.0, rel=0.15)


def test_a_line_is_lowered_to_zero_at_most():
    assert Line(1.0, 2.0).less(0.25) == Line(0.75, 2.0)
    assert Line(1.0, 2.0).less(3.0) == Line(0.0, 2.0)


def test_costs_survive_json():
    assert Costs.from_json(json.loads(json.dumps(DEAR.to_json()))) == DEAR
    with pytest.raises(KeyError):
        Costs.from_json({"run": {"base": 1.0, "slope": 0.0}})


def test_the_ps_share_the_variables_but_not_the_runs():
    costs = replace(DEAR, lookup=NOTHING)  # each ps has a part of the table
    one, four = (messages(Job(num_ps=n), costs) for n in (1, 4))
    assert one.pull.bytes_to_trainer / four.pull.bytes_to_trainer == pytest.approx(4, rel=0.01)
    beyond_run = [each.pull.ps_secs - 2e-4 for each in (one, four)]
    assert beyond_run[0] == pytest.approx(4 * beyond_run[1])
    assert one.commit == four.commit


def test_the_cost_of_rows_is_proportional():
    few, many = (messages(Job(rows=rows), DEAR) for rows in (0, 1000))
    for part, slopes in (("pull", DEAR.lookup), ("push", DEAR.scatter)):
        more = getattr(many, part).ps_secs - getattr(few, part).ps_secs
        assert more == pytest.approx(1000 * slopes.ps.slope)
        more = getattr(many, part).trainer_secs - getattr(few, part).trainer_secs
        assert more == pytest.approx(1000 * slopes.trainer.slope)


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
    assert limits(job, here, DEAR)[0].trainers == pytest.approx(16, rel=0.12)
    assert factor(8, 10) == factor(10, 8) == 1.25


# Input.


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Job, {"split_steps": 0}),
        (Job, {"step_secs": -1.0}),
        (Job, {"jitter": 1.5}),
        (Job, {"step_secs": math.nan}),
        (Machines, {"cores": 0}),
    ],
)
def test_an_impossible_job_is_a_config_error(kind, wrong):
    with pytest.raises(ConfigError) as caught:
        kind(**wrong)
    assert [caught.value.field] == list(wrong)
