"""Repeats runs that TensorFlow refuses by mistake: one in some 50,000 sent straight to a server.

A server gives each `session.run` of a client a random number, and takes a number among its last
100,000 for a duplicate request. But it draws each number from a generator freshly seeded with 32
bits, so numbers do collide (the birthday problem). The run then fails with AbortedError before it
has begun. (TensorFlow 2.21: 4 of 203,000 runs. `ThreadLocalNew64` in tsl/platform/random.cc,
`RecentRequestIds` in core/distributed_runtime.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_log = logging.getLogger(__name__)

_DUPLICATE_REQUEST = "request was received twice"
_MOST_CALLS = 10  # even three collisions in a row do not happen by chance

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def retry_duplicate_request(
    call: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs
) -> Answer:
    """Calls, and calls again if the server refuses a duplicate request; raises the tenth error."""
    for _ in range(_MOST_CALLS - 1):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if _DUPLICATE_REQUEST not in str(error):
                raise
            _log.info("TensorFlow refused a run as a duplicate request; it is sent again")
    return call(*args, **kwargs)
