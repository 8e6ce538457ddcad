"""A job on paper: what its trainers do in a step, and what each message of it asks of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks._scale_costs import Cost, Costs, Line
from tfdist.errors import ConfigError

# What a message has around its values.
_FRAME_BYTES = 1000


@dataclass(frozen=True)
class Job:
    """A ps job. Each trainer pulls, works, pushes and commits its batch in each step.

    Raises ConfigError for a number that is too small.

    Attributes:
        trainers: how many.
        num_ps: over which the variables are spread; ps 0 also keeps splits and barrier.
        step_secs: what a trainer works by itself in a step, on a machine of its own.
        jitter: by how much of it that differs at most, equally likely up and down.
        variables: dense ones.
        dense_bytes: of all of them, pulled and pushed whole in each step.
        rows: of a table, looked up and updated in each step.
        row_bytes: of each.
        commit_steps: from one commit to the next.
        split_steps: from one claim to the next.
        barrier_steps: from one meeting of all to the next.
    """

    trainers: int = 64
    num_ps: int = 1
    step_secs: float = 0.1
    jitter: float = 0.2
    variables: int = 8
    dense_bytes: int = 1 << 20
    rows: int = 1024
    row_bytes: int = 128
    commit_steps: int = 1
    split_steps: int = 16
    barrier_steps: int = 50

    def __post_init__(self) -> None:
        counts = ("trainers", "num_ps", "variables", "commit_steps", "split_steps", "barrier_steps")
        _check(self, counts, 1)
        _check(self, ("step_secs", "dense_bytes", "rows", "row_bytes"), 0)
        if not 0 <= self.jitter <= 1:
            raise ConfigError("jitter", self.jitter, "from 0 to 1")


@dataclass(frozen=True)
class Machines:
    """What the tasks run on.

    Attributes:
        cores: of each ps.
        bytes_per_sec: of its network, in each direction.
        is_one: whether the trainers work on the cores of the ps too, and no bytes travel.
    """

    cores: int = 8
    bytes_per_sec: float = 1.25e9
    is_one: bool = False

    def __post_init__(self) -> None:
        _check(self, ("cores", "bytes_per_sec"), 1)


def _check(given: Job | Machines, names: Sequence[str], least: int) -> None:
    for name in names:
        if not getattr(given, name) >= least:
            raise ConfigError(name, getattr(given, name), f"at least {least}")


@dataclass(frozen=True)
class Message:
    """What one message asks for, in seconds and bytes.

    Attributes:
        trainer_secs: CPU time of the trainer.
        delay_secs: that nobody works for.
        ps_secs: CPU time of each ps that it goes to, outside of a section.
        section_secs: CPU time within a section.
        bytes_to_ps: to each ps.
        bytes_to_trainer: from each ps.
    """

    trainer_secs: float = 0.0
    delay_secs: float = 0.0
    ps_secs: float = 0.0
    section_secs: float = 0.0
    bytes_to_ps: float = 0.0
    bytes_to_trainer: float = 0.0


@dataclass(frozen=True)
class Messages:
    """Of one trainer. Pull and push go to every ps, the others to ps 0."""

    pull: Message
    push: Message
    commit: Message
    claim: Message
    arrival: Message


def messages(job: Job, costs: Costs) -> Messages:
    """What they ask for in a job of that size."""
    share = 1 / job.num_ps
    dense, rows = job.dense_bytes * share, job.rows * share
    ids, values = 8 * rows, dense + job.row_bytes * rows
    pull = _exchange(job, costs.pull, costs.lookup)
    return Messages(
        pull=replace(
            pull,
            trainer_secs=pull.trainer_secs + costs.run.trainer.at(job.num_ps),
            delay_secs=pull.delay_secs + costs.run.delay.at(job.num_ps),
            ps_secs=pull.ps_secs + costs.run.ps.at(job.num_ps),
            bytes_to_ps=_FRAME_BYTES + ids,
            bytes_to_trainer=_FRAME_BYTES + values,
        ),
        push=replace(
            _exchange(job, costs.push, costs.scatter), bytes_to_ps=_FRAME_BYTES + values + ids
        ),
        # A commit travels with the update.
        commit=_section(costs.commit, costs.commit_section, job.trainers, frame=0),
        claim=_section(costs.claim, costs.claim_section, job.trainers),
        arrival=_section(costs.arrival, costs.arrival_section, job.trainers),
    )


def _exchange(job: Job, of_variable: Cost, of_rows: Cost) -> Message:
    """Of the variables and rows with each ps; the trainer has the work of all of them."""
    variables, rows = job.variables / job.num_ps, job.rows / job.num_ps
    size = job.dense_bytes / job.variables

    def of_one(part: str) -> float:
        line: Line = getattr(of_variable, part)
        rows_line: Line = getattr(of_rows, part)
        return variables * line.at(size) + rows_line.at(rows)

    return Message(
        trainer_secs=job.num_ps * of_one("trainer"),
        delay_secs=max(of_variable.delay.at(size), of_rows.delay.at(rows)),
        ps_secs=of_one("ps"),
    )


def _section(cost: Cost, section: Line, trainers: int, frame: int = _FRAME_BYTES) -> Message:
    total, within = cost.ps.at(trainers), section.at(trainers)
    return Message(
        trainer_secs=cost.trainer.at(trainers),
        delay_secs=cost.delay.at(trainers),
        ps_secs=max(0.0, total - within),
        section_secs=within,
        bytes_to_ps=frame,
        bytes_to_trainer=frame,
    )
