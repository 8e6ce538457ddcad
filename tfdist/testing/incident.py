"""A fault that comes at its moment, while a job runs; chosen by hand or by a seed."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfdist.errors import ClusterError, ConfigError
from tfdist.testing import faults, task_faults
from tfdist.testing.faults import NetworkFault
from tfdist.testing.network import Network
from tfdist.testing.task_faults import TaskFault, Tasks

_LEAVE_SECS = 30.0


@dataclass(frozen=True)
class Incident:
    """A fault, when it begins, and for how long it lasts.

    Attributes:
        fault: what happens.
        after_secs: from the moment at which the job is left to itself.
        for_secs: from its begin to its end.
    """

    fault: NetworkFault | TaskFault
    after_secs: float
    for_secs: float

    @contextlib.contextmanager
    def during(self, network: Network, tasks: Tasks | None = None) -> Iterator[None]:
        """Has it happen in a thread while the block runs, which is over when the block is.

        If the block ends first, a fault that has begun is ended at once, and one that has not
        does not begin.

        Args:
            network: where a fault of a network happens.
            tasks: whose task has a fault of a task.

        Raises:
            Exception: what the begin or the end of the fault raised; after the block, unless that
                raised itself.
        """
        if isinstance(self.fault, TaskFault) and tasks is None:
            raise ConfigError("tasks", tasks, f"what runs the tasks, for {self.fault}")
        block_is_over, failures = threading.Event(), list[Exception]()
        thread = threading.Thread(
            target=self._happen, args=(network, tasks, block_is_over, failures), name=str(self)
        )
        thread.start()
        try:
            yield
        finally:
            block_is_over.set()
            thread.join(_LEAVE_SECS)
        if thread.is_alive():
            raise ClusterError(f"{self.fault} does not end after {_LEAVE_SECS:g} s")
        if failures:
            raise failures[0]

    def _happen(
        self,
        network: Network,
        tasks: Tasks | None,
        block_is_over: threading.Event,
        failures: list[Exception],
    ) -> None:
        if block_is_over.wait(self.after_secs):
            return
        fault = self.fault
        try:
            if isinstance(fault, NetworkFault):
                with fault.on(network):
                    block_is_over.wait(self.for_secs)
            elif tasks is not None:
                with fault.on(tasks):
                    block_is_over.wait(self.for_secs)
        except Exception as error:
            failures.append(error)


def random_incident(
    seed: int,
    *,
    hosts: Sequence[str] = (),
    relayed: Sequence[str] = (),
    tasks: Sequence[str] = (),
    within_secs: float = 5.0,
    longest_secs: float = 5.0,
) -> Incident:
    """One of all possible faults, at a random place and moment; the same for the same seed.

    Args:
        seed: what all follows from, together with the other arguments.
        hosts: of the network; without any no link gets a fault.
        relayed: those of them whose links can get delay and loss.
        tasks: names of tasks that may be killed, started again or stopped.
        within_secs: it begins before that, in seconds.
        longest_secs: it lasts no longer than that.

    Raises:
        ConfigError: there is nobody that could have a fault.
    """
    choice = random.Random(f"tfdist incident {seed}")
    makers = _makers(hosts, relayed, tasks)
    if not makers:
        raise ConfigError("hosts", hosts, "at least one, or at least one of the tasks")
    fault = makers[choice.choice(sorted(makers))](choice)
    after, length = choice.uniform(0, within_secs), choice.uniform(0, longest_secs)
    return Incident(fault, round(after, 3), round(length, 3))


_Maker = Callable[[random.Random], "NetworkFault | TaskFault"]


def _makers(
    hosts: Sequence[str], relayed: Sequence[str], tasks: Sequence[str]
) -> Mapping[str, _Maker]:
    """How each kind of fault that is possible is made, by its name."""
    makers: dict[str, _Maker] = {}
    if hosts:
        makers["Unplug"] = lambda choice: faults.Unplug(choice.choice(hosts))
        makers["LinkDown"] = lambda choice: faults.LinkDown(choice.choice(hosts))
        makers["Bandwidth"] = lambda choice: faults.Bandwidth(
            choice.choice(hosts), round(_log_uniform(choice, 20_000, 2_000_000))
        )
        makers["DiskFull"] = lambda choice: faults.DiskFull()
    if len(hosts) > 1:
        makers["Cut"] = lambda choice: faults.Cut(*choice.sample(hosts, 2))
        makers["OneWayCut"] = lambda choice: faults.OneWayCut(*choice.sample(hosts, 2))
    if relayed:
        makers["Delay"] = lambda choice: faults.Delay(
            choice.choice(relayed),
            round(_log_uniform(choice, 0.005, 0.3), 4),
            round(_log_uniform(choice, 0.001, 0.1), 4),
        )
        makers["Loss"] = lambda choice: faults.Loss(
            choice.choice(relayed), round(_log_uniform(choice, 0.01, 0.3), 3)
        )
    if tasks:
        makers["Kill"] = lambda choice: task_faults.Kill(choice.choice(tasks))
        makers["Restart"] = lambda choice: task_faults.Restart(choice.choice(tasks))
        makers["Pause"] = lambda choice: task_faults.Pause(choice.choice(tasks))
    return makers


def _log_uniform(choice: random.Random, lowest: float, highest: float) -> float:
    """Small ones as often as large ones: each doubling is equally likely."""
    return lowest * float((highest / lowest) ** choice.random())
