"""An epoch that ends for all trainers together, and accounts for every example."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import tensorflow as tf

from tfdist.barrier.interface import Barrier
from tfdist.data.ledger import MOST, Audit, Ledger, Range
from tfdist.deadline import Deadline
from tfdist.errors import (
    BarrierTimeout,
    BrokenBarrierError,
    ConfigError,
    EpochError,
    TfdistError,
    checked_action,
    checked_flag,
    checked_integer,
    checked_timeout,
)
from tfdist.ps.session import PS_DEVICE, PS_LOST, DirectSession
from tfdist.runs.progress import Progress
from tfdist.task import Task, checked_task

ANSWER_SECS = 30.0
RECHECK_SECS = 2.0  # TensorFlow keeps waiting for a lost ps, so it is probed this often


class EpochStatus(Enum):
    """Whether an epoch has ended when `finish` returns."""

    ALL_ENDED = "all ended"
    PARTIAL = "partial"


@dataclass(frozen=True)
class EpochReport:
    """What one trainer did in one epoch.

    Attributes:
        trainer: its name.
        epoch: the epoch's number.
        steps: number of steps in which it read examples.
        examples: number of examples that it read.
        seconds: from the end of the previous epoch to its arrival at the end of this one.
        reads: the examples, as ranges.
        left: when it left the previous epoch, in seconds by the clock of ps 0; None in its first.
    """

    trainer: str
    epoch: int
    steps: int
    examples: int
    seconds: float
    reads: tuple[Range, ...] = field(default=(), repr=False)
    left: float | None = None


@dataclass(frozen=True)
class EpochResult:
    """The outcome of an epoch; the same on every trainer if all have ended.

    Attributes:
        number: the epoch's number.
        status: ALL_ENDED, or PARTIAL if a trainer did not end in time.
        reports: one for each trainer that has ended, by rank.
        absent: names of the trainers that have not ended.
        audit: the reads of all reports compared with `expected`; None if that is not known.
    """

    number: int
    status: EpochStatus
    reports: tuple[EpochReport, ...]
    absent: tuple[str, ...]
    audit: Audit | None

    @property
    def steps(self) -> int:
        """The sum over all reports. If each step is one update, this is the number of updates."""
        return sum(report.steps for report in self.reports)

    @property
    def examples(self) -> int:
        """The sum over all reports; an example that was read twice counts twice."""
        return sum(report.examples for report in self.reports)

    @property
    def missing(self) -> tuple[Range, ...]:
        """Ranges of examples that no trainer read; empty if `expected` is not known."""
        return self.audit.missing if self.audit else ()

    @property
    def duplicates(self) -> tuple[Range, ...]:
        """Ranges of examples that were read more than once; empty if `expected` is not known."""
        return self.audit.duplicates if self.audit else ()

    def check(self) -> None:
        """Raises EpochError unless all trainers have ended and every example was read once."""
        if self.absent:
            raise EpochError(
                f"epoch {self.number}: not ended by {', '.join(self.absent)}",
                missing=self.missing,
                duplicates=self.duplicates,
            )
        if self.audit is not None:
            self.audit.check()


class Epoch:
    """A sequence of epochs for one trainer; each trainer makes its own, with the same name.

    ::

        epoch = Epoch(task, "train", expected=90_000, action=save, timeout=300)
        for _ in range(10):
            has_value = True
            while epoch.should_continue(has_value):
                _, number, weight, has_value = session.run([step, ...])
                epoch.read(number[weight > 0])
            result = epoch.finish()

    With `should_continue` all trainers take the same number of steps: as many as the trainer with
    the most data. If each trains at its own pace, write ``while has_value`` instead.

    A restarted trainer continues in the epoch in which it was. Its report lacks the examples that
    its earlier incarnation read.

    Args:
        task: a chief or a worker.
        name: the same on every trainer; another name is another sequence of epochs.
        expected: how many examples an epoch has, numbered from 0.
        share: how many of them this trainer reads, for the `Progress` that `read` notes; by
            default an equal share.
        first: the number of the first epoch of this job, the same on every trainer; after a restore
            `SplitQueue.first_epoch`.
        action: called with the result on the chief, after all have ended and before any trainer
            continues: "save now". If it raises, all get BrokenBarrierError with its text.
        timeout: in seconds, for each wait for the others; None for no limit.

    Raises:
        ConfigError: a parameter is wrong.
        StartTimeout: ps 0 does not answer.
    """

    def __init__(
        self,
        task: Task,
        name: str,
        *,
        expected: int | None = None,
        share: int | None = None,
        first: int = 1,
        action: Callable[[EpochResult], object] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._task, self._name = checked_task(task), name
        if not isinstance(name, str) or not name or name != name.encode(errors="replace").decode():
            raise ConfigError("name", name, "must be a text in UTF-8 that is not empty")
        self._action = checked_action("action", action, "of the result")
        self._timeout = checked_timeout(timeout)
        self._expected = (
            None if expected is None else checked_integer("expected", expected, 0, MOST)
        )
        self._share = None if share is None else checked_integer("share", share, 0, MOST)
        first = checked_integer("first", first, 1, MOST)
        if share is None and self._expected is not None:
            self._share = self._expected // len(task.trainers)
        self._progress = Progress.from_env()
        self._end = Barrier(
            task, f"{name}/end", action=None if action is None else self._act, timeout=timeout
        )
        self._state = EpochState(task, name)
        self.number = first - 1 + self._end.generation
        self._step_barrier: Barrier | None = None  # made when it is first needed
        self._step = 0  # counted over all epochs, as that barrier's generations are
        self._has_ended = self._state.has_ended(self.number)
        self._is_over = False
        self._left: float | None = None
        self._begin()

    def should_continue(self, has_value: bool, timeout: float | None = None) -> bool:
        """Whether any trainer had a value in the last step; the same answer on all trainers.

        Blocks until all trainers have called it. Each calls it before its first step and after
        every step, until it returns False.

        Args:
            has_value: whether this trainer had a value in the last step; True before the first.
            timeout: in seconds; None takes that of the epoch.

        Raises:
            BarrierTimeout: a trainer is missing; the next call continues in the same step.
            BrokenBarrierError: the ps was lost, or has not answered for 30 s.
            TfdistError: it has returned False for this epoch already.
        """
        if self._is_over:
            raise TfdistError(f"epoch {self.number} of {self._name!r} is over; call finish()")
        has_value, timeout = _known_bool(has_value), checked_timeout(timeout)
        if self._step_barrier is None:
            self._step_barrier = Barrier(self._task, f"{self._name}/step", timeout=self._timeout)
            self._step = self._step_barrier.generation
        if not has_value and not self._has_ended:
            # It is written before this trainer arrives, so every trainer that has passed the step
            # reads it. It is a step and not a count of ended trainers: when a slow trainer reads,
            # a fast one may have ended in the next step already, and both need the same answer.
            self._state.put_end(self.number, self._step)
            self._has_ended = True
        self._step_barrier.wait(timeout)
        step, self._step = self._step, self._step + 1
        # A trainer that has not ended knows the answer without asking.
        self._is_over = self._has_ended and self._state.all_ended(self.number, step)
        return not self._is_over

    def read(self, examples: Iterable[int]) -> None:
        """Records the examples, without the padding, that this trainer read in one step.

        It notes the trainer's `Progress` too.
        """
        read = self._ledger.add(examples)
        self._examples += read
        self._steps += read > 0
        self._note(f"epoch {self.number}")

    def finish(self, timeout: float | None = None) -> EpochResult:
        """Reports what this trainer did, and blocks until all trainers have ended the epoch.

        Args:
            timeout: in seconds; None takes that of the epoch.

        Returns:
            The result. Its status is PARTIAL if a trainer did not end in time. Then the action has
            not run, the epoch is not over, and `finish` may be called again. Another trainer whose
            timeout ended a moment later may have got ALL_ENDED.

        Raises:
            BarrierTimeout: ps 0 does not answer; `finish` may be called again.
            BrokenBarrierError: the action failed, or the ps was lost or did not answer for 30 s.
        """
        timeout = checked_timeout(timeout)
        self._note(f"epoch {self.number} ended, waits for the others")
        self._state.put_report(
            EpochReport(
                self._task.name,
                self.number,
                self._steps,
                self._examples,
                time.monotonic() - self._began,
                self._ledger.ranges(),
                self._left,
            )
        )
        try:
            self._end.wait(timeout)
        except BarrierTimeout as error:
            if error.missing == ("ps:0",):
                raise
            return self._result(error.missing)
        result = self._result()
        self._left = self._state.now()
        self.number += 1
        self._has_ended = self._is_over = False
        self._begin()
        return result

    def last_wait(self) -> dict[str, float]:
        """In the action: seconds by trainer that it has waited for the last one."""
        return self._end.statistics().last_wait

    def close(self) -> None:
        """Closes the connections to the ps."""
        self._end.close()
        self._state.close()
        if self._step_barrier is not None:
            self._step_barrier.close()

    def __enter__(self) -> Epoch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self) -> None:
        self._ledger, self._steps, self._examples = Ledger(), 0, 0
        self._began = time.monotonic()

    def _note(self, state: str) -> None:
        total = None if self._share is None else max(self._share, self._examples)
        self._progress.update(state, self._examples, total)

    def _act(self) -> None:
        assert self._action is not None  # only then is this the barrier's action
        self._action(self._result())

    def _result(self, absent: tuple[str, ...] = ()) -> EpochResult:
        reports = self._state.reports(self.number)
        silent = set(self._task.trainers) - {report.trainer for report in reports} - set(absent)
        if silent:
            raise TfdistError(
                f"epoch {self.number} of {self._name!r}: no report of {', '.join(sorted(silent))}, "
                "which has passed its end; each trainer has to end the epoch with finish()"
            )
        ledger = Ledger()
        for report in reports:
            ledger.merge(Ledger(report.reads))
        return EpochResult(
            self.number,
            EpochStatus.PARTIAL if absent else EpochStatus.ALL_ENDED,
            tuple(report for report in reports if report.trainer not in absent),
            absent,
            None if self._expected is None else ledger.audit(self._expected),
        )


class EpochState:
    """The reports that trainers exchange about an epoch on ps 0; a call blocks for at most 30 s.

    Each trainer writes only to its own variables, so no lock is needed. It has two for reports, for
    odd and even epochs: a trainer in the next epoch does not overwrite what a slow trainer still
    has to read. It cannot be two epochs ahead, because it waits for all at the end of each.

    A trainer asks after it has passed a barrier together with others. Without an answer it cannot
    stay in step with them, so all methods raise BrokenBarrierError if the ps is lost or silent.

    Args:
        task: a chief or a worker.
        name: the same on every trainer.
    """

    def __init__(self, task: Task, name: str) -> None:
        ranks = range(len(task.trainers))
        with tf.Graph().as_default() as graph, tf.compat.v1.device(PS_DEVICE):
            ends = [_place(f"{name}/end/{rank}") for rank in ranks]
            reports = [
                [_place(f"{name}/report{parity}/{rank}") for rank in ranks] for parity in (0, 1)
            ]
            self._text = tf.compat.v1.placeholder(tf.string, [])
            self._put_end = _assign(ends[task.rank], self._text)
            self._put_report = [_assign(places[task.rank], self._text) for places in reports]
            self._own_end = _read(ends[task.rank])
            self._ends = tf.stack([_read(place) for place in ends])
            self._reports = [tf.stack([_read(place) for place in places]) for places in reports]
            self._now = tf.timestamp()
        self._name = name
        self._session = DirectSession(task.cluster_spec["ps"][0], graph, timeout=RECHECK_SECS)

    def put_end(self, epoch: int, step: int) -> None:
        """Records that this trainer has no value from `step` on."""
        self._run(self._put_end, json.dumps([epoch, step]))

    def has_ended(self, epoch: int) -> bool:
        """Whether this trainer, or an earlier incarnation of it, has ended that epoch."""
        return _end(self._run(self._own_end), epoch) is not None

    def all_ended(self, epoch: int, step: int) -> bool:
        """Whether no trainer had a value at `step`; call it after all have passed that step."""
        ends = [_end(text, epoch) for text in self._run(self._ends)]
        return all(end is not None and end <= step for end in ends)

    def put_report(self, report: EpochReport) -> None:
        """Stores this trainer's report for the others."""
        self._run(self._put_report[report.epoch % 2], json.dumps(asdict(report)))

    def reports(self, epoch: int) -> list[EpochReport]:
        """The reports that trainers have stored for that epoch, by rank."""
        texts = self._run(self._reports[epoch % 2])
        found = [_parse(json.loads(text)) for text in texts if text]
        return [report for report in found if report.epoch == epoch]

    def now(self) -> float:
        """Seconds by the clock of ps 0, the same for all trainers."""
        return float(self._run(self._now))

    def close(self) -> None:
        """Closes the connection to the ps."""
        self._session.close()

    def _run(self, fetch: Any, text: str | None = None) -> Any:
        feed = {} if text is None else {self._text: text}
        answer = Deadline(ANSWER_SECS)
        while True:
            try:
                return self._session.run(fetch, feed)
            except PS_LOST as error:
                reason = f"ps:0 was lost or restarted: {error}"
                raise BrokenBarrierError(self._name, reason) from error
            except tf.errors.DeadlineExceededError as error:
                # Repeating the run is safe: storing the same text again changes nothing.
                if answer.expired:
                    reason = f"ps:0 has not answered for {answer.elapsed:.0f} s"
                    raise BrokenBarrierError(self._name, reason) from error


def _known_bool(has_value: Any) -> bool:
    """The value of a parameter `has_value`, which may be a tensor of eager code."""
    known = has_value.numpy() if hasattr(has_value, "numpy") else has_value
    return checked_flag("has_value", known)


def _place(name: str) -> Any:
    return tf.raw_ops.VarHandleOp(dtype=tf.string, shape=[], shared_name=f"tfdist/epoch/{name}")


def _assign(place: Any, value: Any) -> Any:
    return tf.raw_ops.AssignVariableOp(resource=place, value=value)


def _read(place: Any) -> Any:
    """The stored text; an empty string if there is none."""
    return tf.cond(
        tf.raw_ops.VarIsInitializedOp(resource=place),
        lambda: tf.raw_ops.ReadVariableOp(resource=place, dtype=tf.string),
        lambda: tf.constant(""),
    )


def _end(text: bytes, epoch: int) -> int | None:
    """The step at which a trainer ended, if the text is about that epoch."""
    number, step = json.loads(text) if text else (None, None)
    return step if number == epoch else None


def _parse(values: dict[str, Any]) -> EpochReport:
    reads = tuple((start, stop) for start, stop in values.pop("reads"))
    return EpochReport(**values, reads=reads)
