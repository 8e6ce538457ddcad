"""PyTorch's losses for many classes, in a process of their own.

PyTorch may be installed for another Python interpreter, so this file also runs as a program there;
it then imports nothing but PyTorch. It reads a line of JSON for each block of steps, and answers
with the CPU seconds of a step. A step is forward, backward and SGD.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from typing import Any

BATCH, DIM = 256, 64
SIZES = (10_000, 100_000)
_BATCHES = 64
_RATE = 0.1

ADAPTIVE = "torch AdaptiveLogSoftmaxWithLoss"
LINEAR = "torch linear_cross_entropy"


class Process(AbstractContextManager["Process"]):
    """A process with PyTorch, as a context manager.

    Attributes:
        peers: kind and number of classes of each block.
        version: of PyTorch.
    """

    def __init__(self, interpreter: str) -> None:
        self._process = subprocess.Popen(
            [interpreter, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        hello = self._answer()
        self.version: str = hello["version"]
        self.peers = [(kind, classes) for kind in hello["kinds"] for classes in SIZES]

    def cpu_secs(self, kind: str, classes: int, steps: int) -> float:
        """The CPU seconds of a step, over a block of steps."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([kind, classes, steps]) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the process with PyTorch ended with code {self._process.wait()}")
        return json.loads(line)


def _serve() -> None:
    import torch

    steps: dict[tuple[str, int], Any] = {}
    functional = torch.nn.functional
    has_linear = hasattr(functional, "linear_cross_entropy")
    kinds = [ADAPTIVE, *([LINEAR] if has_linear else [])]
    print(json.dumps({"version": torch.__version__, "kinds": kinds}), flush=True)
    for line in sys.stdin:
        kind, classes, count = json.loads(line)
        if (kind, classes) not in steps:
            steps[kind, classes] = _Step(torch, kind, classes)
        step = steps[kind, classes]
        start = time.process_time()
        for _ in range(count):
            step()
        print((time.process_time() - start) / count, flush=True)


class _Step:
    """A training step; a call runs it."""

    def __init__(self, torch: Any, kind: str, classes: int) -> None:
        self._torch, self._kind = torch, kind
        torch.manual_seed(1)
        # Zipf's law: the logarithm of a label plus 1 is uniform.
        logs = torch.rand([_BATCHES, BATCH], dtype=torch.float64)
        labels = torch.exp(logs * torch.log(torch.tensor(classes + 1.0))).long() - 1
        self._labels = labels.clamp(0, classes - 1)
        self._inputs = (0.3 * torch.randn([BATCH, DIM])).requires_grad_()
        if kind == ADAPTIVE:
            self._layer = torch.nn.AdaptiveLogSoftmaxWithLoss(
                DIM, classes, cutoffs=[classes // 20, classes // 4]
            )
        else:
            self._layer = torch.nn.Linear(DIM, classes)
        self._optimizer = torch.optim.SGD([self._inputs, *self._layer.parameters()], lr=_RATE)

    def __call__(self) -> None:
        labels = self._labels[int(self._torch.randint(_BATCHES, []))]
        self._optimizer.zero_grad()
        self._loss(labels).backward()
        self._optimizer.step()

    def _loss(self, labels: Any) -> Any:
        if self._kind == ADAPTIVE:
            return self._layer(self._inputs, labels).loss
        # Its chunks, an option, cut the batch, not the classes; they took 2 s a step here.
        return self._torch.nn.functional.linear_cross_entropy(
            self._inputs, self._layer.weight, labels, linear_bias=self._layer.bias
        )


if __name__ == "__main__":
    _serve()
