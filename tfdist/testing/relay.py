"""A cable with delay, jitter and loss, made in user space for kernels without netem.

The program of `RelayedLink`: it makes a host's network card and the switch's port as TAP devices
and carries frames between them, in order. Its argument is JSON: `host` and `switch` (processes in
their networks), `card` and `port` (names), `seed`. Each line of its standard input is a JSON object
with `delay_secs`, `jitter_secs` and `loss`, in force when the line `ok` comes back; the first `ok`
means that the devices are there. It ends with its standard input.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque

from tfdist.testing.enter import enter

_TUNSETIFF = 0x400454CA  # linux/if_tun.h, as are the next
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_LONGEST_FRAME = 65536
_AT_ONCE = 64  # frames of one direction, before the other one is looked at
_MOST_FRAMES = 10_000  # on their way; a real cable's ends drop what is too much as well


class Direction:
    """Frames on their way from one device to the other."""

    def __init__(self, source: int, sink: int, seed: str) -> None:
        self.source, self._sink, self._random = source, sink, random.Random(seed)
        self._frames: deque[tuple[float, bytes]] = deque()
        self.set_quality(0.0, 0.0, 0.0)

    def set_quality(self, delay_secs: float, jitter_secs: float, loss: float) -> None:
        """See `LinkQuality`; for what is taken from now on."""
        self._delay_secs, self._jitter_secs, self._loss = delay_secs, jitter_secs, loss

    @property
    def next_due(self) -> float:
        """When the next frame arrives; infinity if none is on its way."""
        return self._frames[0][0] if self._frames else float("inf")

    def take(self) -> None:
        """Takes what the source has sent."""
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(self.source, _LONGEST_FRAME)
            except BlockingIOError:
                return
            if self._random.random() < self._loss or len(self._frames) >= _MOST_FRAMES:
                continue
            due = time.monotonic() + self._delay_secs + self._jitter_secs * self._random.random()
            # In order: a frame that overtakes others looks like a loss to TCP.
            self._frames.append((max(due, self._frames[-1][0]) if self._frames else due, frame))

    def deliver(self, now: float) -> None:
        """Hands over what has arrived by `now`."""
        while self._frames and self._frames[0][0] <= now:
            frame = self._frames.popleft()[1]
            with contextlib.suppress(OSError):  # the device is down, so nobody hears it
                os.write(self._sink, frame)


def _main() -> None:
    settings = json.loads(sys.argv[1])
    enter(settings["host"], ["net"])
    card = _tap(settings["card"])
    enter(settings["switch"], ["net"])
    port = _tap(settings["port"])
    directions = [
        Direction(card, port, f"{settings['seed']} out"),
        Direction(port, card, f"{settings['seed']} in"),
    ]
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
                direction.set_quality(**json.loads(line))
            print("ok", flush=True)


def _tap(name: str) -> int:
    """Makes the TAP device in the network of this process; it lasts as long as the descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


if __name__ == "__main__":
    _main()
