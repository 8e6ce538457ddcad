"""The FLOPs per second that a step really achieves, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from tfdist.errors import (
    ConfigError,
    checked_action,
    checked_integer,
    checked_number,
    checked_several,
)
from tfdist.planner.quantity import Quantity

MOST_RUNS = 10**6


def calibrate_step(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    flops: Quantity | float,
    *,
    runs: int = 5,
    warm_up: int = 2,
    clock: Callable[[], float] = time.monotonic,
) -> Quantity:
    """Runs a step a few times, and returns its FLOPs per second with their spread.

    It blocks for `warm_up + runs` steps. Divide by the peak of a device for the efficiency: the
    share of the peak that a step achieves. Its interval is that of a prediction.

    Args:
        function: the step. The first runs trace and compile it, so they do not count.
        inputs: its arguments.
        flops: of one step; those of a training step are `forward_flops` plus `backward_flops`.
        runs: steps that are measured.
        warm_up: steps before them.
        clock: returns seconds that never decrease.

    Returns:
        The median in FLOPs per second, and as `interval` the slowest and the fastest run.

    Raises:
        ConfigError: an argument is wrong, or a step is too short for the clock.
    """
    checked_action("function", function, "of the inputs", may_be_none=False)
    inputs = tuple(checked_several("inputs", inputs, "must be a list of arguments"))
    amount = flops.value if isinstance(flops, Quantity) else flops
    amount = checked_number("flops", amount, lambda n: 0 < n < 1e30, "must be positive FLOPs")
    checked_integer("runs", runs, 1, MOST_RUNS)
    checked_integer("warm_up", warm_up, 0, MOST_RUNS)
    for _ in range(warm_up):
        function(*inputs)
    _wait_for_devices()
    secs = []
    for _ in range(runs):
        start = clock()
        function(*inputs)
        _wait_for_devices()
        secs.append(clock() - start)
    if min(secs) <= 0:
        raise ConfigError(
            "function", function, f"must run longer than {min(secs)} s to be measured"
        )
    median = statistics.median(secs)
    return Quantity(
        "achieved",
        amount / median,
        "FLOPs per second",
        "flops / median",
        {"flops": amount, "median": median},
        f"measured in {runs} runs",
        interval=(amount / max(secs), amount / min(secs)),
    )


def _wait_for_devices() -> None:
    """A GPU computes a step after the call has returned."""
    import tensorflow as tf

    tf.test.experimental.sync_devices()
