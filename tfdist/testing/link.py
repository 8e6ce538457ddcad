"""The links of a test network whose quality can be changed: a process carries what goes over them.

The kernel's own netem would cost less time, but many kernels come without it, and it cannot be
seeded on most others (Linux 6.6 brought that).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from dataclasses import asdict, dataclass

from tfdist.errors import ClusterError, ConfigError
from tfdist.testing.program import program

CARD = "eth0"  # of each host
TUN = "/dev/net/tun"
_ANSWER_SECS = 10.0
_LEAVE_SECS = 5.0


@dataclass(frozen=True)
class LinkQuality:
    """How a link treats what goes over it, each way.

    Attributes:
        delay_secs: how long everything is under way.
        jitter_secs: up to how much longer, at random. Nothing overtakes.
        loss: which part of the frames gets lost, at random; 0 to 1.
    """

    delay_secs: float = 0.0
    jitter_secs: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delay_secs", "jitter_secs"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(name, getattr(self, name), "a number of seconds, at least 0")
        if not 0 <= self.loss <= 1:
            raise ConfigError("loss", self.loss, "a part, from 0 to 1")


class RelayedLink:
    """Two devices with a process in between, which carries what one sends to the other.

    Args:
        holders: processes in the network of the host and in that of the switch.
        port: the name of the switch's device; the host's is CARD.
        seed: of what is random.

    Attributes:
        quality: what it is now.
    """

    def __init__(self, holders: tuple[int, int], port: str, seed: str) -> None:
        self.quality = LinkQuality()
        host, switch = holders
        settings = {"host": host, "switch": switch, "card": CARD, "port": port, "seed": seed}
        self._process = subprocess.Popen(
            program("tfdist.testing.relay", json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._await_ok()

    def set_quality(self, quality: LinkQuality) -> None:
        """Changes it for what is sent from now on; what is under way arrives as it would have."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(quality)).encode() + b"\n")
        self._process.stdin.flush()
        self._await_ok()
        self.quality = quality

    def close(self) -> None:
        """Ends the process; the devices go with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_LEAVE_SECS)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _await_ok(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], _ANSWER_SECS)
        if not ready or os.read(stream.fileno(), 16) != b"ok\n":
            code = self._process.poll()
            state = "is silent" if code is None else f"ended with exit code {code}"
            raise ClusterError(f"the relay of a link {state}")
