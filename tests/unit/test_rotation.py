"""The rotation of long matrices leaves no case out."""

import pytest

from tests.rotation import cases_of_the_day


@pytest.mark.parametrize(("size", "number"), [(1, 1), (5, 1), (7, 3), (100, 10), (3, 7)])
def test_all_cases_run_within_as_many_days_as_it_takes(size, number):
    days = -(-size // number)
    for first in (0, 739_949):
        found = [cases_of_the_day(range(size), number, first + day, "a") for day in range(days)]
        assert sorted(case for cases in found for case in cases) == [*range(size)]
        assert all(1 <= len(cases) <= number for cases in found)


def test_a_seed_repeats_a_day():
    assert cases_of_the_day(range(100), 5, 7, "a") == cases_of_the_day(range(100), 5, 7, "a")
    assert cases_of_the_day(range(100), 5, 7, "a") != cases_of_the_day(range(100), 5, 8, "a")
