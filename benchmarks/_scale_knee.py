"""Where a job stops to get faster with more trainers, read off a curve: measured or simulated."""

from __future__ import annotations

from collections.abc import Mapping


def crossing(steps_per_sec: Mapping[int, float]) -> float:
    """How many trainers could make the most steps of the curve, if none waited for another.

    That is where the line from the origin through the fewest trainers reaches the height of the
    highest point. In a closed system it is (Z + S) / S, with Z seconds away from the server that
    is full first and S seconds at it.

    Args:
        steps_per_sec: of all trainers together, by their number.
    """
    fewest = min(steps_per_sec)
    return max(steps_per_sec.values()) / (steps_per_sec[fewest] / fewest)


def last_growth(steps_per_sec: Mapping[int, float]) -> float:
    """How many times as many steps the most trainers make as the next fewer; of a plateau 1."""
    *_, before, last = sorted(steps_per_sec)
    return steps_per_sec[last] / steps_per_sec[before]
