"""Runs that TensorFlow refuses by mistake: one in some 50,000 that go straight to a server.

A server gives each `session.run` that it does for a client a random number, and refuses a number
that it has seen among the last 100,000, for it takes that for a repetition. But for each run it
draws from a generator that was just seeded with 32 bits, so that numbers do repeat: birthdays.
The run fails with AbortedError before it has begun. (Seen on TensorFlow 2.21: 4 of 203,000 runs.
`ThreadLocalNew64` in tsl/platform/random.cc, `RecentRequestIds` in core/distributed_runtime.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_log = logging.getLogger(__name__)

_DUPLICATE_REQUEST = "request was received twice"
_MOST_CALLS = 10  # by chance not even three in a row are mistaken

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def retry_duplicate_request(
    call: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs
) -> Answer:
    """Calls, and calls again if the server takes it for another one; that error after the tenth."""
    for _ in range(_MOST_CALLS - 1):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if _DUPLICATE_REQUEST not in str(error):
                raise
            _log.info("TensorFlow refused a run as a duplicate request; it is sent again")
    return call(*args, **kwargs)
