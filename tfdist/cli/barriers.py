"""How the barriers of a job stand, as its ps 0 tells: asked by a process beside this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from tfdist.barrier_notes import BarrierNote, noted_barriers
from tfdist.cluster.environment import SERVER_ENVIRONMENT
from tfdist.cluster.run_folder import RunFolder

# Most of it for the import of TensorFlow on a busy machine.
_ANSWER_SECS = 60.0


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
    folders = [run.folder_of(life.name, life.attempt) for life in run.latest()]
    return list(dict.fromkeys(note for folder in folders for note in noted_barriers(folder)))


def ask(
    pid: int,
    cluster: dict[str, list[str]],
    notes: Sequence[BarrierNote],
    timeout: float = _ANSWER_SECS,
) -> Barriers:
    """How they stand; blocks for `timeout` seconds at most.

    Args:
        pid: of ps 0, whose network may be another than ours.
        cluster: addresses by type.
        notes: the barriers that are meant.
        timeout: in seconds, the import of TensorFlow included.
    """
    wanted = {"pid": pid, "cluster": cluster, "notes": [asdict(note) for note in notes]}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "tfdist.cli.read_barriers"],
            input=json.dumps(wanted),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **SERVER_ENVIRONMENT, **quiet},
        )
    except subprocess.TimeoutExpired:
        return Barriers(failure=f"the process that asks ps:0 has not ended after {timeout:g} s")
    if ended.returncode != 0:
        last = ended.stderr.strip().rpartition("\n")[2]
        return Barriers(
            failure=f"the process that asks ps:0 failed (exit code {ended.returncode}): {last}"
        )
    answer = json.loads(ended.stdout)
    return Barriers(answer["barriers"], answer["failure"])


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
