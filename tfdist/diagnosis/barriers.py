"""How the barriers of a job stand, as its ps 0 tells: asked by a process beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from tfdist.cluster.helper_process import ask_helper_process, call_in_fork
from tfdist.diagnosis.read_barriers import read
from tfdist.errors import ClusterError
from tfdist.runs.barrier_notes import BarrierNote, noted_barriers
from tfdist.runs.folder import RunFolder


@dataclass(frozen=True)
class Barriers:
    """What is known of the barriers of a job.

    Attributes:
        reports: each a `tfdist.barrier.reading.BarrierReport` as plain data.
        failure: why there are no more of them; None if these are all.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None


def noted(run: RunFolder) -> list[BarrierNote]:
    """All barriers that the tasks of a run have made."""
    folders = [run.folder_of(record.name, record.attempt) for record in run.latest()]
    return list(dict.fromkeys(note for folder in folders for note in noted_barriers(folder)))


def ask(pid: int, cluster: dict[str, list[str]], notes: Sequence[BarrierNote]) -> Barriers:
    """How they stand; blocks while a process beside this one imports TensorFlow and asks.

    Args:
        pid: of ps 0, whose network may be another than ours.
        cluster: addresses by type.
        notes: the barriers that are meant.
    """
    try:
        answer = ask_helper_process("tfdist.diagnosis.read_barriers", _wanted(pid, cluster, notes))
    except ClusterError as error:
        return Barriers(failure=str(error))
    return Barriers(answer["barriers"], answer["failure"])


def ask_in_fork(
    pid: int, cluster: dict[str, list[str]], notes: Sequence[BarrierNote], timeout: float
) -> Barriers:
    """The same for a launcher, whose fork server spares it the import of TensorFlow."""
    try:
        answer = call_in_fork(read, _wanted(pid, cluster, notes), timeout=timeout)
    except ClusterError as error:
        return Barriers(failure=str(error))
    return Barriers(answer["barriers"], answer["failure"])


def _wanted(
    pid: int, cluster: dict[str, list[str]], notes: Sequence[BarrierNote]
) -> dict[str, Any]:
    return {"pid": pid, "cluster": cluster, "notes": [asdict(note) for note in notes]}


def barrier_table(barriers: Barriers) -> Table:
    """A row for each."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("barrier", overflow="fold")
    table.add_column("generation", justify="right", no_wrap=True)
    for title in ("arrived", "missing"):
        table.add_column(title, no_wrap=True)
    table.add_column("state", overflow="fold")
    for report in barriers.reports:
        table.add_row(
            report["name"],
            str(report["generation"] or ""),
            _who(report, "arrived"),
            _who(report, "missing"),
            _state(report),
        )
    return table


def _who(report: dict[str, Any], state: str) -> str:
    """Their names, and when each arrived last."""
    return "\n".join(
        f"{place['trainer']} {_ago(place['seconds'])}"
        for place in report["places"]
        if place["state"] == state
    )


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f} s ago"


def _state(report: dict[str, Any]) -> str:
    if report["problem"] is not None:
        return str(report["problem"])
    if report["generation"] is None:
        return "ps:0 does not know it"
    if report["broken"] is not None:
        return f"broken: {report['broken']}"
    if report["acts"]:
        return f"{report['places'][0]['trainer']} runs the action"
    waits = [place["seconds"] for place in report["places"] if place["state"] == "arrived"]
    if waits:
        return f"{len(waits)} wait{'s' if len(waits) == 1 else ''} for {max(waits):.0f} s"
    return "nobody waits"
