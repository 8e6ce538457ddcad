"""The interval of a hang rate, against published tables and against simulation."""

import random

import pytest

from tfdist.repro.series import Rate


@pytest.mark.parametrize(
    ("hits", "runs", "low", "high"),
    [
        (0, 59, 0.0, 0.0495),  # 1 - 0.05 ** (1 / 59)
        (59, 59, 0.9505, 1.0),
        (7, 12, 0.2767, 0.8483),  # from a table of Clopper and Pearson's interval
        (1, 10, 0.0025, 0.4450),
        (50, 100, 0.3983, 0.6017),
    ],
)
def test_the_bounds_match_published_tables(hits, runs, low, high):
    assert Rate(hits, runs).bounds() == pytest.approx((low, high), abs=5e-4)


def test_the_interval_covers_the_true_rate_as_often_as_promised():
    chance = random.Random(1)
    held = 0
    for _ in range(400):
        hits = sum(chance.random() < 0.1 for _ in range(30))
        low, high = Rate(hits, 30).bounds()
        held += low <= 0.1 <= high
    assert held >= 0.93 * 400


def test_a_rate_is_shown_with_its_interval():
    assert str(Rate(0, 300)) == "0 of 300 runs (95% confidence: at most 1.0%)"
    assert str(Rate(7, 12)) == "7 of 12 runs, 58% (95% confidence: 28% to 85%)"
