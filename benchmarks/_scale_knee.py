"""Where more trainers stop making a job faster, from a measured or simulated curve."""

from __future__ import annotations

from collections.abc import Mapping


def crossing(steps_per_sec: Mapping[int, float]) -> float:
    """The number of trainers at which the highest rate of the curve would be reached without waits.

    There the line from the origin through the point of the fewest trainers reaches the height of
    the highest point. In a closed system this is (Z + S) / S, for Z seconds away from the
    bottleneck and S seconds at it.

    Args:
        steps_per_sec: rate of all trainers together, by their number.
    """
    fewest = min(steps_per_sec)
    return max(steps_per_sec.values()) / (steps_per_sec[fewest] / fewest)


def last_growth(steps_per_sec: Mapping[int, float]) -> float:
    """The rate of the most trainers relative to the next fewer; 1 on a plateau."""
    *_, before, last = sorted(steps_per_sec)
    return steps_per_sec[last] / steps_per_sec[before]
