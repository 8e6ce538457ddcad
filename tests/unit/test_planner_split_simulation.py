"""The simulation of a ps job and the limits of its resources, against closed formulas."""

import json
import math
import random
from dataclasses import replace

import pytest

from tests.message_costs import DEAR, FAST, FREE, NOTHING
from tfdist.errors import ConfigError
from tfdist.planner.message_costs import Cost, Line, MessageCosts
from tfdist.planner.queues import Clock, Lock, Meeting, Station
from tfdist.planner.saturation import (
    ARRIVALS,
    changes,
    cycle_secs,
    demands,
    first_limit,
    ps_limits,
)
from tfdist.planner.split_job import Machines, SplitJob, messages
from tfdist.planner.split_simulation import (
    CPU_0,
    CPU_OF_ALL,
    CPU_OTHERS,
    INWARD,
    OUTWARD,
    TABLE_LOCK,
    WORK,
    simulate_split_job,
)

STEADY = SplitJob(jitter=0.0, variables=1, dense_bytes=0, rows=0, step_secs=0.09, barrier_steps=200)


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
        n: simulate_split_job(replace(STEADY, trainers=n), many_cores, costs).steps_per_sec
        for n in (1, 5, 10, 20, 40)
    }
    assert curve[1] == pytest.approx(10, rel=1e-6)
    assert curve[5] == pytest.approx(50, rel=0.01)
    assert curve[40] == pytest.approx(100, rel=0.01)
    assert max(curve.values()) / curve[1] == pytest.approx(10, rel=0.01)
    first = first_limit(STEADY, many_cores, costs)
    assert (first.name, first.value) == (TABLE_LOCK, pytest.approx(10, abs=0.5))


def test_a_locked_section_serves_one_message_at_a_time_on_any_number_of_cores():
    on = Machines(cores=8)
    job = replace(STEADY, trainers=80)
    outside = replace(FREE, run=of_ps(0.01))
    assert simulate_split_job(job, on, outside).steps_per_sec == pytest.approx(800, rel=0.02)
    within = with_locked("commit", 0.01)
    assert simulate_split_job(job, on, within).steps_per_sec == pytest.approx(100, rel=0.02)


def test_the_holder_of_a_lock_gets_the_next_core():
    costs = replace(with_locked("commit", 0.001), run=of_ps(0.01))
    job = replace(STEADY, trainers=100, step_secs=0.0)
    found = simulate_split_job(job, replace(FAST, cores=4), costs)
    assert found.steps_per_sec == pytest.approx(4 / 0.011, rel=0.05)
    assert found.shares["variables"] > 0.9  # the wait for a core


def test_a_trainer_waits_for_the_slowest_ps():
    """Ps 0 is full of commits and the other is idle; half of the waits are pulls."""
    costs = replace(FREE, run=of_ps(0.01), commit=of_ps(0.01))
    job = replace(STEADY, trainers=100, num_ps=2)
    found = simulate_split_job(job, replace(FAST, cores=1), costs)
    assert found.use[CPU_OTHERS] == pytest.approx(0.5, rel=0.05)
    assert found.shares["variables"] == pytest.approx(found.shares["splits"], rel=0.2)


def test_a_meeting_costs_the_sum_of_its_arrivals():
    """The rate is N E / (E Z + N A): E steps of Z seconds between meetings, arrivals of A."""
    job = replace(STEADY, trainers=50, barrier_steps=10, split_steps=10)
    costs = with_locked("arrival", 0.018)
    found = simulate_split_job(job, FAST, costs, intervals=3)
    assert found.steps_per_sec == pytest.approx(50 * 10 / (10 * 0.09 + 50 * 0.018), rel=1e-6)
    assert found.shares["barrier"] == pytest.approx(0.5, abs=1e-6)
    (limit,) = (each for each in ps_limits(job, FAST, costs) if each.name == ARRIVALS)
    assert limit.value == pytest.approx(51, abs=1)  # a single trainer pays for one arrival


def test_the_network_limits_the_bytes_in_each_direction():
    job = replace(STEADY, trainers=30, dense_bytes=10**7)
    found = simulate_split_job(job, Machines(bytes_per_sec=1e8), FREE)
    assert found.steps_per_sec == pytest.approx(10, rel=0.02)
    assert max(found.use[INWARD], found.use[OUTWARD]) > 0.98
    spread_out = simulate_split_job(replace(job, num_ps=4), Machines(bytes_per_sec=1e8), FREE)
    assert spread_out.steps_per_sec == pytest.approx(40, rel=0.02)


def test_on_one_machine_the_trainers_share_the_cores_without_a_network():
    costs = replace(FREE, run=Cost(Line(0.002), Line(0.003), Line(0.004)))
    here = Machines(cores=2, bytes_per_sec=1.0, is_one=True)
    job = replace(STEADY, dense_bytes=10**7)
    alone = simulate_split_job(replace(job, trainers=1), here, costs)
    assert 1 / alone.steps_per_sec == pytest.approx(0.099)
    full = simulate_split_job(replace(job, trainers=100), here, costs)
    assert full.steps_per_sec == pytest.approx(2 / 0.005, rel=0.01)


def test_on_one_machine_more_ps_share_the_same_cores():
    here, costs = Machines(cores=2, is_one=True), replace(FREE, run=of_ps(0.01))
    for num_ps in (1, 3):
        job = replace(STEADY, trainers=100, num_ps=num_ps, barrier_steps=30)
        found = simulate_split_job(job, here, costs)
        assert found.steps_per_sec == pytest.approx(2 / (0.01 * num_ps), rel=0.08)
        assert found.use[CPU_OF_ALL] == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("num_ps", [1, 2, 16])
def test_no_message_is_lost_and_none_is_served_twice(num_ps):
    job = SplitJob(trainers=12, num_ps=num_ps, barrier_steps=24, split_steps=8, commit_steps=2)
    run = simulate_split_job(job, Machines(), DEAR, intervals=2)
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
    [
        (Machines(), 1),
        (Machines(), 3),
        (Machines(cores=2, is_one=True), 1),
        (Machines(cores=2, is_one=True), 3),
    ],
)
def test_each_resource_follows_the_utilization_law(machines, num_ps):
    """This ties the arithmetic to the simulation."""
    job = SplitJob(trainers=40, num_ps=num_ps, barrier_steps=32)
    run = simulate_split_job(job, machines, DEAR)
    demanded = demands(job, machines, DEAR)
    shared = (set(run.use) & set(demanded)) - {TABLE_LOCK}
    assert (CPU_OF_ALL if machines.is_one else CPU_0) in shared
    for name in shared:
        assert run.use[name] == pytest.approx(run.steps_per_sec * demanded[name], rel=1e-6), name
    # The holder of the lock may wait for a core.
    assert run.use[TABLE_LOCK] >= 0.999 * run.steps_per_sec * demanded[TABLE_LOCK]
    assert sum(run.shares.values()) == pytest.approx(1)
    assert run.shares[WORK] == pytest.approx(run.steps_per_sec / 40 * job.step_secs, rel=0.02)


def test_one_trainer_takes_the_computed_cycle():
    job = SplitJob(trainers=1, num_ps=4, jitter=0.0, barrier_steps=16)
    alone = simulate_split_job(job, Machines(), DEAR)
    assert 1 / alone.steps_per_sec == pytest.approx(cycle_secs(job, Machines(), DEAR), rel=1e-3)


def test_the_tightest_resource_bounds_the_rate():
    job = SplitJob(trainers=600, num_ps=2, barrier_steps=16)
    run = simulate_split_job(job, Machines(), DEAR)
    (tightest, demand) = max(demands(job, Machines(), DEAR).items(), key=lambda item: item[1])
    assert run.steps_per_sec <= 1 / demand
    assert run.steps_per_sec == pytest.approx(1 / demand, rel=0.1)
    assert first_limit(job, Machines(), DEAR).name == tightest == TABLE_LOCK


def test_a_run_follows_from_its_seed():
    job = SplitJob(trainers=8, barrier_steps=16)
    first, again, other = (
        simulate_split_job(job, Machines(), DEAR, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


# Limits and changes.


def test_the_first_limit_shows_what_it_is_made_of():
    found = first_limit(SplitJob(), Machines(), DEAR)
    assert found == min(ps_limits(SplitJob(), Machines(), DEAR), key=float)
    assert found.unit == "trainers"
    assert found.value == pytest.approx(found.values["cycle"] / found.values["demand"], abs=0.5)


def test_more_ps_help_against_a_full_network_but_not_a_full_table():
    heavy = SplitJob(dense_bytes=50 << 20)
    assert first_limit(heavy, Machines(), DEAR).name == INWARD
    best, *_, worst = changes(heavy, Machines(), DEAR)
    assert best.name == "twice as many ps"
    assert best.value > 1.4 * worst.value
    light = SplitJob(dense_bytes=1 << 10, num_ps=4)
    now = first_limit(light, Machines(), DEAR)
    assert now.name == TABLE_LOCK
    by_name = {change.name: change.value for change in changes(light, Machines(), DEAR)}
    assert max(by_name, key=by_name.get) == "a commit half as often"
    assert by_name["twice as many ps"] < 1.1 * now.value


def test_a_cost_that_grows_with_the_trainers_lowers_the_limit():
    steady = with_locked("commit", 1e-3)
    growing = with_locked("commit", 1e-3, 1e-5)
    job = replace(STEADY, trainers=1, step_secs=0.1)
    # N (1e-3 + 1e-5 N) = 0.1 + 1e-3 + 1e-5 N has its solution at 63; without the slope 101.
    assert first_limit(job, Machines(), steady).value == pytest.approx(101, abs=1)
    assert first_limit(job, Machines(), growing).value == pytest.approx(62.1, abs=1)


def test_a_free_resource_has_no_limit():
    assert first_limit(STEADY, Machines(is_one=True), FREE).value == float("inf")


# MessageCosts and curves.


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
    assert MessageCosts.from_json(json.loads(json.dumps(DEAR.to_json()))) == DEAR
    with pytest.raises(KeyError):
        MessageCosts.from_json({"run": {"base": 1.0, "slope": 0.0}})


def test_the_ps_share_the_variables_but_not_the_runs():
    costs = replace(DEAR, lookup=NOTHING)  # each ps has a part of the table
    one, four = (messages(SplitJob(num_ps=n), costs) for n in (1, 4))
    assert one.pull.bytes_to_trainer / four.pull.bytes_to_trainer == pytest.approx(4, rel=0.01)
    beyond_run = [each.pull.ps_secs - 2e-4 for each in (one, four)]
    assert beyond_run[0] == pytest.approx(4 * beyond_run[1])
    assert one.commit == four.commit


def test_the_cost_of_rows_is_proportional():
    few, many = (messages(SplitJob(rows=rows), DEAR) for rows in (0, 1000))
    for part, slopes in (("pull", DEAR.lookup), ("push", DEAR.scatter)):
        more = getattr(many, part).ps_secs - getattr(few, part).ps_secs
        assert more == pytest.approx(1000 * slopes.ps.slope)
        more = getattr(many, part).trainer_secs - getattr(few, part).trainer_secs
        assert more == pytest.approx(1000 * slopes.trainer.slope)


# Input.


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (SplitJob, {"split_steps": 0}),
        (SplitJob, {"step_secs": -1.0}),
        (SplitJob, {"jitter": 1.5}),
        (SplitJob, {"step_secs": math.nan}),
        (Machines, {"cores": 0}),
    ],
)
def test_an_impossible_job_is_a_config_error(kind, wrong):
    with pytest.raises(ConfigError) as caught:
        kind(**wrong)
    assert [caught.value.field] == list(wrong)
