"""The description of a job: what a trainer does in a step, and the demand of each message."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tfdist.errors import checked_flag, checked_integer, checked_number, checked_secs
from tfdist.planner.message_costs import Cost, Line, MessageCosts
from tfdist.planner.transformer import LARGEST

_MOST_BYTES = 10**15
# Of a message, beyond its values.
_FRAME_BYTES = 1000


@dataclass(frozen=True)
class SplitJob:
    """A ps job. In each step a trainer pulls, works, pushes and commits its batch.

    Attributes:
        trainers: number of trainers.
        num_ps: number of ps, which share the variables; ps 0 also keeps splits and barrier.
        step_secs: work of a trainer in a step, on a machine of its own.
        jitter: largest relative deviation of `step_secs`, uniformly distributed.
        variables: number of dense variables.
        dense_bytes: their size together; each step pulls and pushes all of it.
        rows: rows of a table that each step reads and updates.
        row_bytes: size of a row.
        commit_steps: steps from one commit to the next.
        split_steps: steps from one claim to the next.
        barrier_steps: steps from one barrier of all trainers to the next.

    Raises:
        ConfigError: a number is out of range.
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
        for name in counts:
            checked_integer(name, getattr(self, name), 1, LARGEST)
        for name in ("dense_bytes", "rows", "row_bytes"):
            checked_integer(name, getattr(self, name), 0, _MOST_BYTES)
        checked_secs("step_secs", self.step_secs, most=LARGEST)
        checked_number("jitter", self.jitter, lambda n: 0 <= n <= 1, "must be from 0 to 1")


@dataclass(frozen=True)
class Machines:
    """The machines of a ps job.

    Attributes:
        cores: cores of each ps.
        bytes_per_sec: bandwidth of a ps in each direction.
        is_one: True if all tasks share the cores of one machine, without a network.

    Raises:
        ConfigError: a number is out of range.
    """

    cores: int = 8
    bytes_per_sec: float = 1.25e9
    is_one: bool = False

    def __post_init__(self) -> None:
        checked_integer("cores", self.cores, 1, LARGEST)
        rule = "must be at least 1 byte per second"
        checked_number("bytes_per_sec", self.bytes_per_sec, lambda n: n >= 1, rule)
        checked_flag("is_one", self.is_one)


@dataclass(frozen=True)
class Message:
    """The demand of one message, in seconds and bytes.

    Attributes:
        trainer_secs: CPU time of the trainer.
        delay_secs: latency that uses no CPU.
        ps_secs: CPU time of each ps that gets it, without the lock.
        section_secs: CPU time of the ps with the lock held.
        bytes_to_ps: bytes to each ps.
        bytes_to_trainer: bytes from each ps.
    """

    trainer_secs: float = 0.0
    delay_secs: float = 0.0
    ps_secs: float = 0.0
    section_secs: float = 0.0
    bytes_to_ps: float = 0.0
    bytes_to_trainer: float = 0.0


@dataclass(frozen=True)
class Messages:
    """The messages of one trainer. Pull and push go to every ps, the others to ps 0."""

    pull: Message
    push: Message
    commit: Message
    claim: Message
    arrival: Message


def messages(job: SplitJob, costs: MessageCosts) -> Messages:
    """The demand of all messages in a job of this size."""
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


def _exchange(job: SplitJob, of_variable: Cost, of_rows: Cost) -> Message:
    """A message with variables and rows for each ps; the trainer does the work for all ps."""
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
