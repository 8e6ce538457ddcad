"""A fault at a chosen time while a job runs; the choice is yours or a seed's."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tfdist.errors import ClusterError, ConfigError, checked_integer, checked_names, checked_secs
from tfdist.testing import faults
from tfdist.testing.faults import NetworkFault, TaskFault, Tasks
from tfdist.testing.network import Network

_LEAVE_SECS = 30.0
_LONGEST_SECS = 1e9  # Python's waits take no more than 9e9


@dataclass(frozen=True)
class Incident:
    """A fault, when it begins, and how long it lasts.

    Attributes:
        fault: what happens.
        after_secs: from the start of the `during` block to the start of the fault.
        for_secs: the duration of the fault.
    """

    fault: NetworkFault | TaskFault
    after_secs: float
    for_secs: float

    def __post_init__(self) -> None:
        if not isinstance(self.fault, NetworkFault | TaskFault):
            raise ConfigError("fault", self.fault, "must be one of tfdist.testing.faults")
        for name in ("after_secs", "for_secs"):
            secs = checked_secs(name, getattr(self, name), most=_LONGEST_SECS)
            object.__setattr__(self, name, secs)

    @contextlib.contextmanager
    def during(self, network: Network, tasks: Tasks | None = None) -> Iterator[None]:
        """Makes the fault happen in a thread while the block runs.

        The end of the block ends the fault, or prevents it if it has not begun.

        Args:
            network: where a fault of a network happens.
            tasks: what runs the task of a task's fault.

        Raises:
            Exception: what starting or ending the fault raised; after the block, unless the block
                itself raised.
        """
        if isinstance(self.fault, TaskFault) and tasks is None:
            rule = f"must be what runs the tasks, because {self.fault} needs it"
            raise ConfigError("tasks", tasks, rule, missing=True)
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
            raise ClusterError(f"{self.fault} has not ended after {_LEAVE_SECS:g} s")
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
    """A random fault at a random place and time; the same seed and arguments give the same one.

    Args:
        seed: determines the choice.
        hosts: the hosts that may have a fault of the network; none if empty.
        relayed: the hosts among them that may have delay and loss.
        tasks: the names of the tasks that may be killed, restarted or paused.
        within_secs: the latest start, in seconds.
        longest_secs: the longest duration, in seconds.

    Raises:
        ConfigError: neither a host nor a task may have a fault, or a number is wrong.
    """
    within_secs = checked_secs("within_secs", within_secs, most=_LONGEST_SECS)
    longest_secs = checked_secs("longest_secs", longest_secs, most=_LONGEST_SECS)
    seed = checked_integer("seed", seed, -(2**63), 2**63 - 1)
    hosts, relayed = checked_names("hosts", hosts), checked_names("relayed", relayed)
    tasks = checked_names("tasks", tasks)
    choice = random.Random(f"tfdist incident {seed}")
    makers = _makers(hosts, relayed, tasks)
    if not makers:
        raise ConfigError("hosts", hosts, "must name at least one host, or tasks at least one task")
    fault = makers[choice.choice(sorted(makers))](choice)
    after, length = choice.uniform(0, within_secs), choice.uniform(0, longest_secs)
    return Incident(fault, round(after, 3), round(length, 3))


_Maker = Callable[[random.Random], "NetworkFault | TaskFault"]


def _makers(
    hosts: Sequence[str], relayed: Sequence[str], tasks: Sequence[str]
) -> Mapping[str, _Maker]:
    """A function for each possible kind of fault, by its name."""
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
        makers["Kill"] = lambda choice: faults.Kill(choice.choice(tasks))
        makers["Restart"] = lambda choice: faults.Restart(choice.choice(tasks))
        makers["Pause"] = lambda choice: faults.Pause(choice.choice(tasks))
    return makers


def _log_uniform(choice: random.Random, lowest: float, highest: float) -> float:
    """A number such that each doubling of the range is equally likely."""
    return lowest * float((highest / lowest) ** choice.random())
