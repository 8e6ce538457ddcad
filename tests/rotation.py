"""Which cases of a long matrix run today."""

import random
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")


def cases_of_the_day(cases: Sequence[Case], number: int, seed: int, name: str) -> list[Case]:
    """At most `number` of the cases; those of consecutive seeds are all cases, none twice.

    Args:
        cases: the matrix.
        number: how many of its cases run each day.
        seed: the day.
        name: of the test; cases of different tests are shuffled differently.
    """
    # Not shuffled, every third case of a matrix may well be the same column.
    shuffled = random.Random(name).sample(cases, len(cases))
    days = -(-len(cases) // number)
    return shuffled[seed % days :: days]
