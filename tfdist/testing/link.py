"""Links with delay, jitter and loss: a process relays all frames between a host and the switch.

The kernel's netem would use less CPU, but many kernels lack it, and before Linux 6.6 it has no
seed.

`RelayedLink` runs this module as a program. Its arguments are a process in the host's network, one
in the switch's network, the name of the switch's port, and a seed. It creates the host's card and
the port as TAP devices and prints a line `ok`. Each line of its standard input is a `LinkQuality`;
when that is in force, it prints `ok` again. It ends when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass

from tfdist.errors import ClusterError, ConfigError, checked_secs
from tfdist.testing.enter import enter, program

CARD = "eth0"  # the network card of each host
TUN = "/dev/net/tun"
_ANSWER_SECS = 10.0
_LEAVE_SECS = 5.0

_TUNSETIFF = 0x400454CA  # linux/if_tun.h, like the next two
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_LONGEST_FRAME = 65536
_BATCH = 64  # frames read in one direction before the other direction has its turn
_MOST_FRAMES = 10_000  # in flight; a real network drops frames too when its queues are full


@dataclass(frozen=True)
class LinkQuality:
    """The quality of a link, the same in both directions.

    Attributes:
        delay_secs: how long each frame takes.
        jitter_secs: the longest random addition to that. Frames stay in order.
        loss: the fraction of frames that are lost at random, from 0 to 1.
    """

    delay_secs: float = 0.0
    jitter_secs: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delay_secs", "jitter_secs"):
            checked_secs(name, getattr(self, name), most=1e9)
        if not isinstance(self.loss, float | int) or not 0 <= self.loss <= 1:
            raise ConfigError("loss", self.loss, "must be a fraction from 0 to 1")


class RelayedLink:
    """A link between a host and the switch whose quality can be changed.

    Args:
        holders: a process in the host's network, and one in the switch's network.
        port: the name of the switch's device; the host's device is CARD.
        seed: determines jitter and loss.

    Attributes:
        quality: the current quality.
    """

    def __init__(self, holders: tuple[int, int], port: str, seed: str) -> None:
        self.quality = LinkQuality()
        host, switch = holders
        self._process = subprocess.Popen(
            program("tfdist.testing.link", str(host), str(switch), port, seed),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._await_ok()

    def set_quality(self, quality: LinkQuality) -> None:
        """Changes the quality for frames sent from now on, not for frames in flight."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(quality)).encode() + b"\n")
        self._process.stdin.flush()
        self._await_ok()
        self.quality = quality

    def close(self) -> None:
        """Ends the process, which removes both devices."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_LEAVE_SECS)
        except subprocess.TimeoutExpired:  # a SIGSTOP from elsewhere
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _await_ok(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        ready, _, _ = select.select([stream], [], [], _ANSWER_SECS)
        if not ready or os.read(stream.fileno(), 16) != b"ok\n":
            code = self._process.poll()
            state = "does not answer" if code is None else f"ended with exit code {code}"
            raise ClusterError(f"the relay of a link {state}")


class Direction:
    """One direction of a link: the frames in flight from one device to the other."""

    def __init__(self, source: int, sink: int, seed: str) -> None:
        self.source, self._sink, self._random = source, sink, random.Random(seed)
        self.quality = LinkQuality()  # of frames that are taken from now on
        self._frames: deque[tuple[float, bytes]] = deque()

    @property
    def next_due(self) -> float:
        """When the next frame arrives; infinity if none is in flight."""
        return self._frames[0][0] if self._frames else float("inf")

    def take(self) -> None:
        """Takes the frames that the source has sent."""
        quality = self.quality
        for _ in range(_BATCH):
            try:
                frame = os.read(self.source, _LONGEST_FRAME)
            except BlockingIOError:
                return
            if self._random.random() < quality.loss or len(self._frames) >= _MOST_FRAMES:
                continue
            jitter_secs = quality.jitter_secs * self._random.random()
            due = time.monotonic() + quality.delay_secs + jitter_secs
            # TCP takes a frame that overtakes others for a loss, so frames stay in order.
            self._frames.append((max(due, self._frames[-1][0]) if self._frames else due, frame))

    def deliver(self, now: float) -> None:
        """Writes the frames that are due by `now` to the sink."""
        while self._frames and self._frames[0][0] <= now:
            frame = self._frames.popleft()[1]
            with contextlib.suppress(OSError):  # the device is down, so the frame is lost
                os.write(self._sink, frame)


def _main() -> None:
    host, switch, port_name, seed = sys.argv[1:]
    enter(int(host), ["net"])
    card = _tap(CARD)
    enter(int(switch), ["net"])
    port = _tap(port_name)
    directions = [Direction(card, port, f"{seed} out"), Direction(port, card, f"{seed} in")]
    print("ok", flush=True)
    while True:
        wait = min(direction.next_due for direction in directions) - time.monotonic()
        timeout = None if wait == float("inf") else max(0.0, wait)
        ready, _, _ = select.select([0, card, port], [], [], timeout)
        for direction in directions:
            if direction.source in ready:
                direction.take()
            direction.deliver(time.monotonic())
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            for direction in directions:
                direction.quality = LinkQuality(**json.loads(line))
            print("ok", flush=True)


def _tap(name: str) -> int:
    """Creates a TAP device in this process's network; it lasts as long as the descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


if __name__ == "__main__":
    _main()
