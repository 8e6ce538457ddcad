"""The barriers of a job, as its ps 0 reports them.

Another process reads them, since that takes TensorFlow, which may hang, and since a process can
enter the network of an isolated job only before it has threads. As a program this module is that
process: it reads a question as JSON from standard input, writes `Barriers` as JSON, and ends.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from tfdist.cluster.helper_process import ask_helper_process, call_in_fork
from tfdist.cluster.isolation import enter_network
from tfdist.errors import ClusterError
from tfdist.runs.barrier_notes import ARRIVED, MISSING, BarrierNote, BarrierReport, noted_barriers
from tfdist.runs.folder import RunFolder
from tfdist.task import Task

_ANSWER_SECS = 5.0
_MOST_BARRIERS = 1000


@dataclass(frozen=True)
class Barriers:
    """What is known of the barriers of a job.

    Attributes:
        reports: one for each barrier that could be read.
        failure: why a barrier could not be read; None if all could.
    """

    reports: tuple[BarrierReport, ...] = ()
    failure: str | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Barriers:
        """From what `dataclasses.asdict` made of it."""
        return cls(tuple(map(BarrierReport.parse, values["reports"])), values["failure"])


@dataclass(frozen=True)
class Question:
    """What to read.

    Attributes:
        pid: of ps 0, whose network may be another than ours.
        cluster: the addresses of each task type.
        notes: the barriers.
    """

    pid: int
    cluster: dict[str, list[str]]
    notes: tuple[BarrierNote, ...]

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Question:
        """From what `dataclasses.asdict` made of it."""
        notes = tuple(BarrierNote(**note) for note in values["notes"])
        return cls(values["pid"], values["cluster"], notes)


def barriers_of(run: RunFolder) -> tuple[BarrierNote, ...]:
    """All barriers that the tasks of a run have made."""
    folders = [run.folder_of(record.name, record.attempt) for record in run.latest()]
    noted = [run.readable(functools.partial(noted_barriers, folder)) or [] for folder in folders]
    return tuple(dict.fromkeys(note for notes in noted for note in notes))[:_MOST_BARRIERS]


def ask(question: Question) -> Barriers:
    """Reads the barriers in a helper process; blocks while it imports TensorFlow and asks."""
    try:
        return Barriers.parse(ask_helper_process("tfdist.diagnosis.barriers", asdict(question)))
    except (ClusterError, OSError, ValueError) as error:  # ValueError: the answer is no JSON
        return Barriers(failure=str(error))


def ask_in_fork(question: Question, timeout: float) -> Barriers:
    """The same for a launcher, whose fork server has imported TensorFlow already."""
    try:
        answer: Barriers = call_in_fork(read, question, timeout=timeout)
        return answer
    except (ClusterError, OSError) as error:  # OSError: the fork server is gone
        return Barriers(failure=str(error))


def read(question: Question, timeout: float = _ANSWER_SECS) -> Barriers:
    """Reads the barriers in this process, which enters the network of the job.

    Args:
        question: what to read.
        timeout: seconds for each barrier.
    """
    try:
        enter_network(question.pid)
    except ClusterError as error:
        return Barriers(failure=str(error))

    import tensorflow as tf

    from tfdist.barrier.connection import read_barrier

    ps = Task("ps", 0, question.cluster)
    reports: list[BarrierReport] = []
    for note in question.notes:
        try:
            reports.append(read_barrier(ps.address, ps.trainers, note, timeout))
        except tf.errors.DeadlineExceededError:
            failure = f"{ps.name} at {ps.address} did not answer within {timeout:.0f} s"
            return Barriers(tuple(reports), failure)
        except (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.FailedPreconditionError,
        ) as error:
            # The ps is gone, or was restarted just now; see PS_LOST of tfdist.barrier.connection.
            first_line = error.message.partition("\n")[0]
            return Barriers(tuple(reports), f"{ps.name} at {ps.address} is gone: {first_line}")
    return Barriers(tuple(reports))


def barrier_table(barriers: Barriers) -> Table:
    """A row for each barrier."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("barrier", overflow="fold")
    table.add_column("generation", justify="right", no_wrap=True)
    for title in (ARRIVED, MISSING):
        table.add_column(title, no_wrap=True)
    table.add_column("state", overflow="fold")
    for report in barriers.reports:
        table.add_row(
            report.name,
            str(report.generation or ""),
            _trainers(report, ARRIVED),
            _trainers(report, MISSING),
            _state(report),
        )
    return table


def _trainers(report: BarrierReport, state: str) -> str:
    """The trainers in this state, and when each arrived last."""
    return "\n".join(
        f"{place.trainer} {_ago(place.seconds)}" for place in report.places if place.state == state
    )


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f} s ago"


def _state(report: BarrierReport) -> str:
    if report.problem is not None:
        return report.problem
    if report.generation is None:
        return "unknown to ps:0"
    if report.broken is not None:
        return f"broken: {report.broken}"
    if report.acts:
        return f"{report.places[0].trainer} runs the action"
    waits = [place.seconds or 0.0 for place in report.places if place.state == ARRIVED]
    if waits:
        return f"longest wait: {max(waits):.0f} s"
    return "no trainer waits"


if __name__ == "__main__":
    print(json.dumps(asdict(read(Question.parse(json.load(sys.stdin))))), flush=True)
    # An orderly exit would wait for TensorFlow's threads.
    os._exit(0)
