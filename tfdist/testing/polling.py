"""Waiting in a test for what cannot call back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tfdist.deadline import Deadline

POLL_SECS = 0.02


def poll_until(condition: Callable[[], object], what: str, *, timeout: float = 10.0) -> None:
    """Returns once `condition()` is true; fails after `timeout` seconds, saying `what` was not.

    For a test that has to wait for something which cannot call back.
    """
    deadline = Deadline(timeout)
    while not condition():
        if deadline.expired:
            pytest.fail(f"not after {timeout:.1f} s: {what}")
        time.sleep(POLL_SECS)
