"""The cost of stragglers, against all draws one by one, closed forms and other simulations."""

import heapq
import math
import random
from itertools import product

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    barrier_seconds,
    best_backups,
    bounded_staleness_seconds,
    exponential_barrier_seconds,
    mean_staleness,
    normal_barrier_seconds,
    staleness_at_most,
    worker_staleness,
)

SAMPLE = [0.5, 2.0, 1.0, 1.0]
# Steps of an exponential distribution with mean 1, evenly by probability.
EXPONENTIAL = [-math.log1p(-(k + 0.5) / 5000) for k in range(5000)]
SKEWED = list(map(random.Random(1).lognormvariate, [0.0] * 300, [0.4] * 300))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_barrier_is_the_mean_over_all_draws(workers):
    draws = list(product(SAMPLE, repeat=workers))
    for backups in range(workers):
        mean = sum(sorted(each)[workers - 1 - backups] for each in draws) / len(draws)
        assert barrier_seconds(SAMPLE, workers, backups).value == pytest.approx(mean)


def test_one_worker_takes_the_mean():
    assert barrier_seconds(SAMPLE, 1).value == sum(SAMPLE) / 4


@pytest.mark.parametrize("sample", [SAMPLE, SKEWED])
def test_more_workers_wait_longer_and_more_backups_shorter(sample):
    by_workers = [barrier_seconds(sample, workers).value for workers in (1, 2, 5, 50, 10**4)]
    assert by_workers == sorted(set(by_workers))
    assert by_workers[-1] == pytest.approx(max(sample), rel=1e-3)
    by_backups = [barrier_seconds(sample, 12, backups).value for backups in range(12)]
    assert by_backups == sorted(set(by_backups), reverse=True)


@pytest.mark.parametrize(("workers", "backups"), [(1, 0), (10, 0), (10, 3), (100, 5)])
def test_an_exponential_sample_has_the_closed_form(workers, backups):
    closed = exponential_barrier_seconds(1.0, workers, backups).value
    assert closed == pytest.approx(sum(1 / k for k in range(backups + 1, workers + 1)))
    assert barrier_seconds(EXPONENTIAL, workers, backups).value == pytest.approx(closed, rel=5e-3)


def test_the_mean_scales_the_closed_form():
    assert exponential_barrier_seconds(0.2, 4).value == pytest.approx(0.2 * 25 / 12)


@pytest.mark.parametrize(
    ("workers", "largest"),
    [
        (1, 0.0),
        (2, 1 / math.sqrt(math.pi)),
        (3, 1.5 / math.sqrt(math.pi)),
        (4, 3 / math.sqrt(math.pi) * (0.5 + math.asin(1 / 3) / math.pi)),
        (5, 5 / math.sqrt(math.pi) * (0.25 + 1.5 * math.asin(1 / 3) / math.pi)),
    ],
)
def test_normal_steps_have_the_known_order_statistics(workers, largest):
    found = normal_barrier_seconds(10.0, 2.0, workers).value
    assert found == pytest.approx(10 + 2 * largest, abs=1e-12)


def test_a_normal_sample_has_the_mean_of_the_integral():
    chance = random.Random(0)
    sample = [chance.gauss(10, 1) for _ in range(20_000)]
    expected = normal_barrier_seconds(10, 1, 64).value
    assert barrier_seconds(sample, 64).value == pytest.approx(expected, rel=3e-3)
    # Largest of many: close to sqrt(2 ln W), and never above it.
    most = normal_barrier_seconds(10, 1, 10**6).value - 10
    assert 0.9 * math.sqrt(2 * math.log(10**6)) < most < math.sqrt(2 * math.log(10**6))


def test_the_best_number_of_backups_is_the_best_of_all():
    for sample in (SAMPLE, SKEWED, [1.0] * 99 + [50.0]):
        rates = [(20 - b) / barrier_seconds(sample, 20, b).value for b in range(20)]
        found = best_backups(sample, 20)
        assert found.value == rates.index(max(rates))
        assert found.values["gradients per second"] == pytest.approx(max(rates))


def test_backups_pay_only_against_stragglers():
    assert best_backups([1.0] * 10, 50).value == 0
    assert best_backups([1.0] * 99 + [1.001], 50).value == 0
    assert best_backups([1.0] * 99 + [50.0], 50).value > 0
    assert best_backups(SAMPLE, 1).value == 0


def updates_of(rates, count, draw):
    """(worker, staleness) of each update when workers run freely."""
    queue = [(draw(rate), worker, 0) for worker, rate in enumerate(rates)]
    heapq.heapify(queue)
    for number in range(count):
        now, worker, read_at = heapq.heappop(queue)
        yield worker, number - read_at
        heapq.heappush(queue, (now + draw(rates[worker]), worker, number + 1))


def test_equal_workers_have_a_staleness_of_one_less_than_workers():
    *_, steady = updates_of([1.0] * 5, 100, lambda rate: 1 / rate)
    assert steady[1] == mean_staleness(5).value == 4


@pytest.mark.parametrize("draw", [lambda rate: 1 / rate, random.Random(3).expovariate])
def test_the_mean_staleness_depends_on_no_rate(draw):
    rates = [1.0, 0.53, 2.21, 0.17]
    found = [staleness for _, staleness in updates_of(rates, 40_000, draw)]
    assert sum(found) / len(found) == pytest.approx(mean_staleness(4).value, rel=2e-3)


def test_a_slow_worker_is_staler():
    rates, count = [1.0, 3.0, 0.5], 60_000
    found = [[], [], []]
    for worker, staleness in updates_of(rates, count, random.Random(5).expovariate):
        found[worker].append(staleness)
    for worker, values in enumerate(found):
        expected = worker_staleness(rates, worker).value
        assert sum(values) / len(values) == pytest.approx(expected, rel=0.05)
    everything = [value for values in found for value in values]
    for most in (0, 1, 2, 5, 20):
        fraction = sum(value <= most for value in everything) / len(everything)
        assert staleness_at_most(rates, most).value == pytest.approx(fraction, abs=0.01)


def test_the_staleness_of_two_equal_workers_is_geometric():
    assert [staleness_at_most([1, 1], k).value for k in range(3)] == [1 / 2, 3 / 4, 7 / 8]
    assert worker_staleness([1, 1, 1], 2).value == pytest.approx(mean_staleness(3).value)
    assert staleness_at_most([2.0], 0).value == 1


def test_the_mean_of_the_distribution_is_the_mean():
    rates = [1.0, 3.0, 0.5]
    tail = [1 - staleness_at_most(rates, most).value for most in range(2000)]
    assert sum(tail) == pytest.approx(mean_staleness(3).value)


def test_a_bound_of_0_is_a_barrier():
    found = bounded_staleness_seconds(SKEWED, 8, 0)
    exact = barrier_seconds(SKEWED, 8).value
    assert found.interval[0] < exact < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.05 * exact
    assert found.part("compute") + found.part("wait") == found.value
    # A control: the interval excludes a barrier of 10 workers.
    assert not found.interval[0] < barrier_seconds(SKEWED, 10).value < found.interval[1]


def test_a_larger_bound_never_waits_longer():
    # The random numbers are the same, so this holds exactly, and not only on average.
    waits = [
        bounded_staleness_seconds(SKEWED, 6, bound, steps=800).part("wait")
        for bound in (0, 1, 2, 4, 8, 800)
    ]
    assert waits == sorted(waits, reverse=True)
    assert (waits[0] > waits[1] > waits[2], waits[-1]) == (True, 0)


def test_one_worker_and_equal_steps_never_wait():
    assert bounded_staleness_seconds(SKEWED, 1, 0).part("wait") == 0
    assert bounded_staleness_seconds([2.0], 9, 1).part("wait") == 0


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_wait_is_that_of_an_event_driven_simulation(bound):
    workers, steps, seed = 4, 200, 7
    chance = random.Random(seed)
    drawn = [chance.choices(sorted(SAMPLE), k=workers) for _ in range(steps)]
    done, idle_since, waited = [0] * workers, [0.0] * workers, [0.0] * steps
    running = []

    def start_all_that_may(now):
        for worker in range(workers):
            step = done[worker]
            if idle_since[worker] is not None and step < steps and step - min(done) <= bound:
                waited[step] += now - idle_since[worker]
                idle_since[worker] = None
                heapq.heappush(running, (now + drawn[step][worker], worker))

    start_all_that_may(0.0)
    while running:
        now, worker = heapq.heappop(running)
        done[worker] += 1
        idle_since[worker] = now
        start_all_that_may(now)
    assert done == [steps] * workers
    found = bounded_staleness_seconds(SAMPLE, workers, bound, steps=steps, seed=seed)
    assert found.part("wait") == pytest.approx(sum(waited[steps // 2 :]) / (workers * steps / 2))


def test_a_seed_repeats_the_simulation():
    first, again, other = (
        bounded_staleness_seconds(SKEWED, 4, 1, steps=100, seed=seed).value for seed in (1, 1, 2)
    )
    assert first == again != other


def test_every_quantity_says_where_it_comes_from():
    counted = (barrier_seconds(SAMPLE, 3), mean_staleness(3))
    published = (
        barrier_seconds(SAMPLE, 3, 1),
        best_backups(SAMPLE, 3),
        exponential_barrier_seconds(1, 3),
        normal_barrier_seconds(1, 1, 3),
        worker_staleness([1, 2], 0),
        staleness_at_most([1, 2], 1),
        bounded_staleness_seconds(SAMPLE, 3, 1, steps=40),
    )
    assert all(each.unit and (each.formula or each.parts) for each in (*counted, *published))
    assert all(each.source for each in published)


@pytest.mark.parametrize("wrong", [[], [0.0], [-1.0], [math.nan], ["1"], "12", None, 3, [True]])
def test_a_wrong_sample_is_refused(wrong):
    for call in (barrier_seconds, best_backups):
        with pytest.raises(ConfigError) as caught:
            call(wrong, 2)
        assert caught.value.field == "sample"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: barrier_seconds([1.0], 0), "workers"),
        (lambda: barrier_seconds([1.0], 2, 2), "backups"),
        (lambda: barrier_seconds([1.0], 2, -1), "backups"),
        (lambda: barrier_seconds([1.0], 10**7), "workers"),
        (lambda: exponential_barrier_seconds(0, 2), "mean"),
        (lambda: normal_barrier_seconds(1, -1, 2), "deviation"),
        (lambda: normal_barrier_seconds(math.nan, 1, 2), "mean"),
        (lambda: mean_staleness(0), "workers"),
        (lambda: worker_staleness([1.0], 1), "worker"),
        (lambda: worker_staleness([], 0), "rates"),
        (lambda: staleness_at_most([0.0], 1), "rates"),
        (lambda: staleness_at_most([1.0], -1), "most"),
        (lambda: bounded_staleness_seconds([1.0], 2, -1), "staleness"),
        (lambda: bounded_staleness_seconds([1.0], 2, 1, steps=1), "steps"),
        (lambda: bounded_staleness_seconds([1.0], 2, 1, seed=-1), "seed"),
    ],
)
def test_a_wrong_number_is_refused(call, field):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
