"""Unique ids and rows by ps, against all batches one by one and against exact sums."""

import math
from itertools import product

import numpy as np
import pytest

from tfdist.errors import ConfigError
from tfdist.planner import IdDistribution

COUNTS = (5, 0, 2, 1, 2)


def all_batches(counts, draws):
    """Each possible batch with its probability."""
    total = sum(counts)
    for batch in product(range(len(counts)), repeat=draws):
        yield batch, math.prod(counts[each] / total for each in batch)


@pytest.mark.parametrize("draws", [1, 2, 4])
def test_unique_ids_are_the_mean_over_all_batches(draws):
    exact = sum(chance * len(set(batch)) for batch, chance in all_batches(COUNTS, draws))
    found = IdDistribution.from_counts(COUNTS).expected_unique(draws)
    assert found.value == pytest.approx(exact)
    assert (found.unit, found.values) == ("ids", {"n": draws, "ids": 5})


def where(placement, rows, num_ps):
    """The ps of each id, written down by hand for this test."""
    if placement == "modulo":
        return [index % num_ps for index in range(rows)]
    return {(5, 2): [0, 0, 0, 1, 1], (5, 3): [0, 0, 1, 1, 2], (5, 7): [0, 1, 2, 3, 4]}[rows, num_ps]


@pytest.mark.parametrize("num_ps", [2, 3, 7])
@pytest.mark.parametrize("placement", ["contiguous", "modulo"])
@pytest.mark.parametrize("deduplicated", [True, False])
def test_rows_by_ps_are_the_mean_over_all_batches(num_ps, placement, deduplicated):
    ps, exact = where(placement, len(COUNTS), num_ps), [0.0] * num_ps
    for batch, chance in all_batches(COUNTS, 3):
        for each in set(batch) if deduplicated else batch:
            exact[ps[each]] += chance
    found = IdDistribution.from_counts(COUNTS).rows_by_ps(
        3, num_ps, placement, deduplicated=deduplicated
    )
    assert found == pytest.approx(exact)


@pytest.mark.parametrize("placement", ["contiguous", "modulo", "hashed"])
@pytest.mark.parametrize("rows", [1, 1000, 10**7])
@pytest.mark.parametrize("num_ps", [1, 7])
def test_the_ps_share_all_rows_and_no_more(placement, rows, num_ps):
    ids = IdDistribution.zipf(rows, 0.9)
    plain = ids.rows_by_ps(5000, num_ps, placement, deduplicated=False)
    assert sum(plain) == pytest.approx(5000)
    unique = ids.rows_by_ps(5000, num_ps, placement, deduplicated=True)
    assert sum(unique) == pytest.approx(ids.expected_unique(5000).value)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1 + 1e-12, 3.0])
def test_zipf_in_blocks_is_zipf_one_by_one(exponent):
    rows = 120_000
    weights = np.arange(1.0, rows + 1) ** -exponent
    one_by_one = IdDistribution.from_counts(weights)
    in_blocks = IdDistribution.zipf(rows, exponent)
    sizes = np.diff(in_blocks.edges)
    assert len(sizes) < 70_000
    masses = np.add.reduceat(one_by_one.probabilities, in_blocks.edges[:-1])
    np.testing.assert_allclose(in_blocks.probabilities * sizes, masses, rtol=1e-9)
    for draws in (100, 10**5):
        exact = one_by_one.expected_unique(draws).value
        assert in_blocks.expected_unique(draws).value == pytest.approx(exact, rel=1e-6)
    for placement in ("contiguous", "modulo"):
        exact = one_by_one.rows_by_ps(10**5, 4, placement, deduplicated=True)
        found = in_blocks.rows_by_ps(10**5, 4, placement, deduplicated=True)
        assert found == pytest.approx(exact, rel=2e-4, abs=1e-6)


def test_ids_that_are_alike_give_the_known_mean():
    # Each of n ids is missing in a batch of k with probability (1 - 1/n)^k.
    found = IdDistribution.zipf(365, 0).expected_unique(23)
    assert found.value == pytest.approx(365 * (1 - (1 - 1 / 365) ** 23))


def test_unique_ids_grow_with_the_batch_and_never_exceed_it():
    ids = IdDistribution.zipf(10**5, 1.1)
    sizes = [0, 0.5, 1, 10, 1000, 10**6, 10**9]
    found = [ids.expected_unique(size).value for size in sizes]
    assert found == sorted(found)
    assert (found[0], found[2]) == (0, pytest.approx(1))
    assert all(each <= min(size, 10**5) + 1e-6 for each, size in zip(found, sizes, strict=True))
    assert found[-1] == pytest.approx(10**5)


def test_popular_ids_are_all_on_the_first_ps_if_shards_are_contiguous():
    ids = IdDistribution.zipf(10**6, 1.05)
    imbalance = {}
    for placement in ("contiguous", "modulo", "hashed"):
        loads = ids.rows_by_ps(10**5, 4, placement, deduplicated=True)
        imbalance[placement] = max(loads) / (sum(loads) / 4)
    assert imbalance["contiguous"] > 3
    assert imbalance["modulo"] < 1.01
    assert imbalance["hashed"] < 1.05
    # Without popular ids there is nothing to balance.
    even = IdDistribution.zipf(10**6, 0).rows_by_ps(10**5, 4, "contiguous", deduplicated=True)
    assert even == pytest.approx([sum(even) / 4] * 4, rel=1e-3)


def test_a_hash_breaks_a_pattern_that_modulo_keeps():
    counts = [1000 if index % 4 == 0 else 1 for index in range(4000)]
    ids = IdDistribution.from_counts(counts)
    modulo, hashed = (
        ids.rows_by_ps(10**4, 4, placement, deduplicated=False)
        for placement in ("modulo", "hashed")
    )
    assert modulo[0] > 0.99 * 10**4
    assert max(hashed) < 1.2 * 10**4 / 4


def test_only_the_proportions_of_counts_matter():
    once, often = IdDistribution.from_counts([1, 2]), IdDistribution.from_counts([10, 20])
    assert once.expected_unique(3).value == often.expected_unique(3).value


@pytest.mark.parametrize(
    "wrong", [[], [0, 0], [-1, 2], [math.nan], [math.inf], [[1, 2]], 3, "12", None, [1, "a"]]
)
def test_wrong_counts_are_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        IdDistribution.from_counts(wrong)
    assert caught.value.field == "counts"


@pytest.mark.parametrize(
    ("rows", "exponent", "field"),
    [
        (0, 1, "rows"),
        (10**13, 1, "rows"),
        (1.5, 1, "rows"),
        (10, -1, "exponent"),
        (10, math.nan, "exponent"),
        (10, 11, "exponent"),
    ],
)
def test_a_wrong_law_is_refused(rows, exponent, field):
    with pytest.raises(ConfigError) as caught:
        IdDistribution.zipf(rows, exponent)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("draws", "num_ps", "placement", "field"),
    [
        (-1, 1, "modulo", "draws"),
        (math.inf, 1, "modulo", "draws"),
        (1, 0, "modulo", "num_ps"),
        (1, 1, "mod", "placement"),
    ],
)
def test_a_wrong_question_is_refused(draws, num_ps, placement, field):
    ids = IdDistribution.zipf(10)
    with pytest.raises(ConfigError) as caught:
        ids.rows_by_ps(draws, num_ps, placement, deduplicated=True)
    assert caught.value.field == field
