"""A barrier across machines, with the interface of `threading.Barrier`; its state is on a ps."""

from __future__ import annotations

from collections.abc import Callable

from tfdist.barrier.counter import CounterBarrier
from tfdist.barrier.interface import BarrierStatistics, SharedBarrier
from tfdist.barrier.queue import QueueBarrier
from tfdist.errors import ConfigError
from tfdist.task import Task

__all__ = ["Barrier", "BarrierStatistics", "CounterBarrier", "QueueBarrier", "SharedBarrier"]

_KINDS: dict[str, type[SharedBarrier]] = {"queue": QueueBarrier, "counter": CounterBarrier}


def Barrier(  # reads as threading.Barrier does
    task: Task,
    name: str,
    *,
    parties: int | None = None,
    action: Callable[[], object] | None = None,
    timeout: float | None = None,
    kind: str = "queue",
    break_on_timeout: bool = False,
) -> SharedBarrier:
    """A barrier that all trainers of a cluster share by its name.

    Blocks until ps 0 answers, for 60 s at most. Each trainer makes its own; one is used by one
    thread at a time, except `abort`.

    Args:
        task: who this is.
        name: the same on every trainer; another name is another barrier.
        parties: how many trainers have to arrive, those of the lowest ranks; by default all.
        action: runs once a generation, on the chief (the trainer of rank 0; elsewhere it is
            ignored), after all have arrived and before anyone goes on: "save now". If it raises,
            all get BrokenBarrierError with its text.
        timeout: in seconds, what `wait` uses when it is given none; None waits without end.
        kind: "queue" blocks on the server, "counter" polls.
        break_on_timeout: a `wait` that times out breaks the barrier for all, as
            `threading.Barrier` does. By default a late trainer may still come.

    Raises:
        ConfigError: a parameter is wrong, or others made it with other parties.
        StartTimeout: ps 0 does not answer.
    """
    if kind not in _KINDS:
        raise ConfigError("kind", kind, f"one of {', '.join(_KINDS)}")
    return _KINDS[kind](
        task,
        name,
        parties=parties,
        action=action,
        timeout=timeout,
        break_on_timeout=break_on_timeout,
    )
