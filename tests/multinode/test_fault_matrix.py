"""A training job under each fault, at each task and at several moments, ends with a known result.

Either every example of every epoch is accounted for, or the job stops with a verdict that names
the cause. All cells: `scripts/test nightly -k fault_matrix`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.multinode import fault_job
from tfdist.cluster.shape import Shape
from tfdist.deadline import Deadline
from tfdist.diagnosis.verdict import Name
from tfdist.repro.case import Actor, Case
from tfdist.repro.lab import Lab
from tfdist.testing.faults import (
    Bandwidth,
    Cut,
    Delay,
    DiskFull,
    Kill,
    LinkDown,
    Loss,
    NetworkFault,
    OneWayCut,
    Pause,
    Restart,
    TaskFault,
    Unplug,
)
from tfdist.testing.network import Network
from tfdist.testing.placement import cluster_on

VICTIMS = ("ps:0", "chief:0", "worker:0")
MOMENTS = ("start", "mid-epoch", "last batch", "barrier", "checkpoint")
HOSTS = ("ps-0", "chief-0", "worker-0")
SHAPE = Shape(num_ps=1, num_workers=1, chief=True)


def host(task: str) -> str:
    return task.replace(":", "-")


def peer(task: str) -> str:
    """The host that the task exchanges most data with."""
    return "chief-0" if task == "ps:0" else "ps-0"


@dataclass(frozen=True)
class Trial:
    """A fault and its possible results.

    Attributes:
        make: returns the fault for a victim.
        secs: its duration; None for good.
        stops: the verdicts with which the job may stop; empty if it must recover.
        stops_at_start: further verdicts before the tasks have met: a task that waits for a ps ends
            with a StartTimeout that names it, and other tasks depend on that task.
    """

    make: Callable[[str], NetworkFault | TaskFault]
    secs: float | None = None
    stops: tuple[Name, ...] = ()
    stops_at_start: tuple[Name, ...] = ()


# A task that opens or closes a session during the fault depends on the dead one.
DEAD = (Name.PEER_DEAD, Name.DEAD_DEPENDENCY)
TRIALS = {
    "kill": Trial(Kill, stops=DEAD),
    # A chief that dies in the action of a barrier breaks the barrier for all.
    "restart": Trial(Restart, 0.5, stops=(Name.TASK_FAILED,)),
    "stop and wake": Trial(Pause, 2.0),
    "stop": Trial(Pause, stops=(Name.PEER_STOPPED,)),
    "unplug": Trial(
        lambda task: Unplug(host(task)), stops=(Name.PEER_UNREACHABLE,), stops_at_start=DEAD
    ),
    "unplug and plug": Trial(lambda task: Unplug(host(task)), 2.0),
    "link down and up": Trial(lambda task: LinkDown(host(task)), 2.0),
    "cut": Trial(lambda task: Cut(host(task), peer(task)), 2.0),
    "one way": Trial(lambda task: OneWayCut(host(task), peer(task)), 2.0),
    "delay": Trial(lambda task: Delay(host(task), secs=0.02, jitter_secs=0.02)),
    "loss": Trial(lambda task: Loss(host(task), part=0.02)),
    "bandwidth": Trial(lambda task: Bandwidth(host(task), 64_000)),
    "disk full": Trial(lambda task: DiskFull(), stops=(Name.TASK_FAILED,)),
}


@dataclass(frozen=True)
class Cell(Case):
    """A case of the lab that runs the job of these tests."""

    def play(self, *, fixed: bool) -> Callable[[Actor], None]:
        return fault_job.train


class Hosts:
    """The stage: each task on a host of its own; the fault begins when a task requests it."""

    def __init__(self, network: Network, fault: NetworkFault | TaskFault, secs: float | None):
        self._network, self._fault, self._secs = network, fault, secs
        self._subject: Any = None
        self._lasts: Deadline | None = None

    @property
    def has_begun(self):
        return self._subject is not None

    def cluster(self, shape, surroundings):
        return cluster_on(
            self._network, shape.num_ps, shape.num_workers, chief=True, surroundings=surroundings
        )

    def do(self, cluster, what, task):
        if self.has_begun:
            return  # two tasks requested it at the same time
        self._subject = self._network if isinstance(self._fault, NetworkFault) else cluster
        self._fault.begin(self._subject)
        self._lasts = None if self._secs is None else Deadline(self._secs)

    def look(self):
        if self._lasts is not None and self._lasts.expired:
            self._lasts = None
            self._fault.end(self._subject)


def cells():
    """Each fault at each victim and moment."""
    for fault, victim, moment in itertools.product(TRIALS, VICTIMS, MOMENTS):
        # The chief alone writes, and only then.
        if fault != "disk full" or (victim, moment) == ("chief:0", "checkpoint"):
            yield pytest.param(fault, victim, moment, id=f"{fault}, {victim}, {moment}")


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.rotates(13)
@pytest.mark.parametrize(("fault", "victim", "moment"), list(cells()))
def test_the_job_recovers_or_stops_with_a_verdict(fault, victim, moment, tmp_path):
    trial, lines = TRIALS[fault], []
    relayed = [host(victim)] if fault in ("delay", "loss") else []
    with Network(HOSTS, relayed=relayed) as network:
        cell = Cell(
            f"{fault}, {victim}, {moment}",
            about="",
            fix="",
            expects=(),
            shape=SHAPE,
            stall_secs=1.5,
            deadline_secs=45.0,
            settings={"victim": victim, "moment": moment, "folder": str(network.shared)},
        )
        stage = Hosts(network, trial.make(victim), trial.secs)
        played = Lab(lines.append, stage).play(cell, fixed=True, seed=1, folder=tmp_path)
    assert stage.has_begun, f"the fault has not happened; {played.verdict}; {lines}"
    missing = not_accounted_for(tmp_path)
    outcome = "recovered" if not missing else f"stopped: {played.verdict}"
    print(f"{cell.name}: {outcome}, after {played.seconds:.1f} s")
    if missing:
        stops = trial.stops + (trial.stops_at_start if moment == "start" else ())
        assert played.verdict.name in stops, f"{played.verdict}; {missing}; {lines}"
        if played.verdict.name not in trial.stops:
            assert re.search(r"StartTimeout: .*: ps:0\.", str(played.verdict))
    if fault == "disk full":
        assert "No space left on device" in str(played.verdict)


def not_accounted_for(folder: Path) -> str:
    """The first example that is not accounted for, in words; empty if there is none."""
    for epoch in range(1, fault_job.EPOCHS + 1):
        file = fault_job.counts_file(folder, epoch)
        if not file.exists():
            return f"epoch {epoch} has not ended"
        note = json.loads(file.read_text("utf-8"))
        again = {number for start, stop in note["again"] for number in range(start, stop)}
        for number, count in enumerate(note["reads"]):
            if count < 1 or (count > 1 and number not in again):
                return f"example {number} of epoch {epoch} was read {count} times"
    return ""
