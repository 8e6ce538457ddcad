"""Whether a ps that does not answer is gone.

TensorFlow tries a process that is gone again and again, until the time of the run is over. The
kernel of its machine refuses a connection at once.
"""

from __future__ import annotations

import socket

_PROBE_SECS = 0.2


def is_refused(address: str) -> bool:
    """Whether nobody listens there; blocks for 0.2 s at most.

    False also where it is slow or cut off, which is not the same as gone.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECS).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False
