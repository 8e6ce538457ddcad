"""What a run of `tfdist run` shows of itself, as the evidence for a verdict."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.evidence import BarrierEvidence, Evidence, State, TaskEvidence
from tfdist.diagnosis.job_stacks import JobStacks, View
from tfdist.diagnosis.sample import name_peers
from tfdist.errors import reason_of
from tfdist.runs.barrier_notes import passed_at
from tfdist.runs.folder import PROGRESS_FILE, RunFolder
from tfdist.runs.progress import ProgressNote


def job_evidence(
    stacks: JobStacks, barriers: Barriers, trainers: Collection[str], seconds: float | None
) -> Evidence:
    """Of a run that stands still, or is over.

    Args:
        stacks: of all its tasks, looked at for a verdict.
        barriers: of the run.
        trainers: names of those tasks that train.
        seconds: since anybody got on; if None, since any trainer did by its own word.
    """
    places = [place for report in barriers.reports for place in report["places"]]
    resigned = {place["trainer"] for place in places if place["state"] == "resigned"}
    # Who has resigned at one barrier may wait at another.
    resigned -= {place["trainer"] for place in places if place["state"] == "arrived"}
    tasks = name_peers(
        [
            _task(stacks.run, view, view.name in trainers, view.name in resigned)
            for view in stacks.views
        ],
        {view.name: view.seen for view in stacks.views if view.seen is not None},
    )
    if seconds is None:
        seconds = min((task.quiet_secs for task in tasks if task.trains), default=0.0)
    return Evidence(
        tasks=tasks,
        over=not stacks.runs,
        seconds=seconds,
        barriers=tuple(_barrier(report) for report in barriers.reports if report["places"]),
    )


def _barrier(report: Mapping[str, Any]) -> BarrierEvidence:
    by_state: dict[str, list[str]] = {"arrived": [], "missing": [], "resigned": []}
    for place in report["places"]:
        by_state[place["state"]].append(place["trainer"])
    return BarrierEvidence(report["name"], tuple(by_state["arrived"]), tuple(by_state["missing"]))


def _task(run: RunFolder, view: View, trains: bool, left: bool) -> TaskEvidence:
    record = view.record
    if record is None:
        return TaskEvidence(view.name, trains, State.ABSENT)
    folder = run.folder_of(view.name, record.attempt)
    known: dict[str, Any] = {
        "name": view.name,
        "trains": trains,
        "left": left,
        "quiet_secs": _quiet_secs(run, view),
    }
    if (progress := ProgressNote.read(folder / PROGRESS_FILE)) is not None:
        known["steps"] = progress.done
    if view.seen is not None:
        return view.seen.evidence(**known)
    if record.ended is None:
        return TaskEvidence(**known, state=State.DEAD)
    code = record.exit_code or 0
    state = State.ENDED if code == 0 else State.DEAD if code < 0 else State.FAILED
    error = None
    if (failure := run.failure(record.name, record.attempt)) is not None:
        error = reason_of(failure.message) or None
    return TaskEvidence(**known, state=state, ended_secs=time.time() - record.ended, error=error)


def _quiet_secs(run: RunFolder, view: View) -> float:
    """Since its last note of progress, since it passed a barrier, or since it has begun."""
    assert view.record is not None
    folder = run.folder_of(view.name, view.record.attempt)
    times = [view.record.began]
    if (passed := passed_at(folder)) is not None:
        times.append(passed / 1e9)
    with suppress(FileNotFoundError):
        times.append((folder / PROGRESS_FILE).stat().st_mtime)
    return max(0.0, time.time() - max(times))
