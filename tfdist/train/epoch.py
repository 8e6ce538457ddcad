"""An epoch that ends for all trainers at once, and accounts for every example."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import tensorflow as tf

from tfdist.barrier.interface import Barrier
from tfdist.data.ledger import Audit, Ledger, Range
from tfdist.deadline import Deadline
from tfdist.errors import BarrierTimeout, BrokenBarrierError, EpochError, TfdistError
from tfdist.ps.session import PS_DEVICE, PS_LOST, DirectSession
from tfdist.runs.progress import Progress
from tfdist.task import Task

ANSWER_SECS = 30.0
RECHECK_SECS = 2.0  # TensorFlow waits for a ps that is gone; the connection is probed this often


class EpochStatus(Enum):
    """How an epoch stands when `finish` returns."""

    ALL_ENDED = "all ended"
    PARTIAL = "partial"


@dataclass(frozen=True)
class EpochReport:
    """What one trainer did in one epoch.

    Attributes:
        trainer: its name.
        epoch: the number of it.
        steps: in which it read examples.
        examples: that it read.
        seconds: from the end of the epoch before to its arrival at the end of this one.
        reads: the examples, as ranges.
        left: when it left the epoch before, in seconds by the clock of ps 0; None in its first.
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
    """What is known of an epoch; the same on every trainer if all have ended.

    Attributes:
        number: of the epoch.
        status: ALL_ENDED, or PARTIAL if somebody had not come in time.
        reports: of those who have come, by rank.
        absent: names of the trainers that have not.
        audit: the reads of all reports against `expected`; None if that is not known.
    """

    number: int
    status: EpochStatus
    reports: tuple[EpochReport, ...]
    absent: tuple[str, ...]
    audit: Audit | None

    @property
    def steps(self) -> int:
        """Of all reports together: as many updates, where each step is one."""
        return sum(report.steps for report in self.reports)

    @property
    def examples(self) -> int:
        """That were read, one that was read twice counted twice."""
        return sum(report.examples for report in self.reports)

    @property
    def missing(self) -> tuple[Range, ...]:
        """Ranges of examples that nobody read; empty if it is not known how many there are."""
        return self.audit.missing if self.audit else ()

    @property
    def duplicates(self) -> tuple[Range, ...]:
        """Ranges of examples that were read more than once; as of `missing`."""
        return self.audit.duplicates if self.audit else ()

    def check(self) -> None:
        """Raises EpochError unless all have ended, and every example was read once."""
        if self.absent:
            raise EpochError(
                f"epoch {self.number}: not ended: {', '.join(self.absent)}",
                missing=self.missing,
                duplicates=self.duplicates,
            )
        if self.audit is not None:
            self.audit.check()


class Epoch:
    """One epoch after another, for one trainer; each trainer makes its own, of the same name.

    ::

        epoch = Epoch(task, "train", expected=90_000, action=save, timeout=300)
        for _ in range(10):
            has_value = True
            while epoch.should_continue(has_value):
                _, number, weight, has_value = session.run([step, ...])
                epoch.read(number[weight > 0])
            result = epoch.finish()

    With `should_continue` the trainers keep step, and each does as many as the one that has most.
    Where
    each trains at its own pace, ``while has_value`` does instead.

    A trainer that was restarted goes on in the epoch in which it was; what its earlier life has
    read is not in its report.

    Args:
        task: a chief or a worker.
        name: the same on every trainer; another name is another sequence of epochs.
        expected: how many examples an epoch has, numbered from 0.
        share: how many of them this trainer reads, for the `Progress` that `read` notes; by
            default an equal share.
        first: the number of the first epoch of this job, the same on every trainer; after a restore
            `SplitQueue.first_epoch`.
        action: called with the result on the chief, when all have ended and before anybody goes
            on: "save now". If it raises, all get BrokenBarrierError with its text.
        timeout: in seconds, of each wait for the others; None waits without end.

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
        self._task, self._name = task, name
        self._expected, self._action, self._timeout = expected, action, timeout
        self._share = (expected or 0) // len(task.trainers) if share is None else share
        self._progress = Progress.from_env()
        self._end = Barrier(
            task, f"{name}/end", action=self._act if action else None, timeout=timeout
        )
        self._state = EpochState(task, name)
        self.number = first - 1 + self._end.generation
        self._step_barrier: Barrier | None = None  # made when it is first needed
        self._step = 0  # by the generations of that barrier, over all epochs
        self._has_ended = self._state.has_ended(self.number)
        self._is_over = False
        self._left: float | None = None
        self._begin()

    def should_continue(self, has_value: bool, timeout: float | None = None) -> bool:
        """Whether anybody has an example left; the same answer for all in the same step.

        Blocks until all have come there, so each trainer has to call it before its first step and
        after each one, until it says no. Then nobody has had anything in the last step.

        Args:
            has_value: whether this trainer has had something in the step before.
            timeout: in seconds; None takes that of the epoch.

        Raises:
            BarrierTimeout: somebody did not come; the next call goes on waiting for the same step.
            BrokenBarrierError: the ps was lost, or is silent for 30 s.
            TfdistError: it has said no already.
        """
        if self._is_over:
            raise TfdistError(f"epoch {self.number} of {self._name!r} is over; call finish()")
        if self._step_barrier is None:
            self._step_barrier = Barrier(self._task, f"{self._name}/step", timeout=self._timeout)
            self._step = self._step_barrier.generation
        if not has_value and not self._has_ended:
            # Before it arrives, so that whoever has passed the step sees it. The step and not a
            # count of those that have ended: a fast trainer may have ended in the next step
            # already when a slow one looks, and both have to see the same.
            self._state.put_end(self.number, self._step)
            self._has_ended = True
        self._step_barrier.wait(timeout)
        step, self._step = self._step, self._step + 1
        # Who has not ended knows the answer.
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
        """Tells the others what this trainer did, and blocks until all have ended.

        Args:
            timeout: in seconds; None takes that of the epoch.

        Returns:
            With status PARTIAL if somebody did not come in time. Then the action has not run, the
            epoch is not over, and `finish` may be called again. Another trainer that looked at
            its own watch a moment later may have seen all.

        Raises:
            BarrierTimeout: ps 0 does not answer; `finish` may be called again.
            BrokenBarrierError: the action failed, or the ps was lost, or is silent for 30 s.
        """
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
        """In the action: seconds by trainer that it has waited for the last one to end."""
        return self._end.statistics().last_wait

    def close(self) -> None:
        """Gives the connections to the ps back."""
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
        self._progress.update(state, self._examples, max(self._share, self._examples))

    def _act(self) -> None:
        assert self._action is not None  # else there is no action
        self._action(self._result())

    def _result(self, absent: tuple[str, ...] = ()) -> EpochResult:
        reports = self._state.reports(self.number)
        silent = set(self._task.trainers) - {report.trainer for report in reports} - set(absent)
        if silent:
            raise TfdistError(
                f"epoch {self.number} of {self._name!r}: no report of {', '.join(sorted(silent))}, "
                "which has come to its end; each trainer has to end it with finish()"
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
    """What trainers report to one another about an epoch, on ps 0; blocks for 30 s at most.

    Each trainer writes only to its own variables, so no lock is needed. For reports it has two, for
    odd and even epochs: a trainer that is already in the next epoch leaves alone what a slow one
    has still to read of this one. It cannot be two ahead, since it waits for all at each end.

    A trainer that gets no answer has passed a barrier that others have passed too, and cannot stay
    in step with them. So all methods raise BrokenBarrierError if the ps is lost or stays silent.

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
        """This trainer has nothing left from `step` on."""
        self._run(self._put_end, json.dumps([epoch, step]))

    def has_ended(self, epoch: int) -> bool:
        """Whether this trainer has said so, in an earlier life perhaps."""
        return _end(self._run(self._own_end), epoch) is not None

    def all_ended(self, epoch: int, step: int) -> bool:
        """Whether nobody had anything left at `step`; all have to have come to its end."""
        ends = [_end(text, epoch) for text in self._run(self._ends)]
        return all(end is not None and end <= step for end in ends)

    def put_report(self, report: EpochReport) -> None:
        """Puts this trainer's report where all find it."""
        self._run(self._put_report[report.epoch % 2], json.dumps(asdict(report)))

    def reports(self, epoch: int) -> list[EpochReport]:
        """Of those trainers that have put one, by rank."""
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
                # To put the same again changes nothing.
                if answer.expired:
                    reason = f"ps:0 has not answered for {answer.elapsed:.0f} s"
                    raise BrokenBarrierError(self._name, reason) from error


def _place(name: str) -> Any:
    return tf.raw_ops.VarHandleOp(dtype=tf.string, shape=[], shared_name=f"tfdist/epoch/{name}")


def _assign(place: Any, value: Any) -> Any:
    return tf.raw_ops.AssignVariableOp(resource=place, value=value)


def _read(place: Any) -> Any:
    """What is there; an empty string if nobody has put anything."""
    return tf.cond(
        tf.raw_ops.VarIsInitializedOp(resource=place),
        lambda: tf.raw_ops.ReadVariableOp(resource=place, dtype=tf.string),
        lambda: tf.constant(""),
    )


def _end(text: bytes, epoch: int) -> int | None:
    """The step of an end, if it is one of that epoch and not of an earlier one."""
    number, step = json.loads(text) if text else (None, None)
    return step if number == epoch else None


def _parse(values: dict[str, Any]) -> EpochReport:
    reads = tuple((start, stop) for start, stop in values.pop("reads"))
    return EpochReport(**values, reads=reads)
