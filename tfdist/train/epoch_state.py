"""What trainers tell one another of an epoch, on ps 0.

Each trainer has its own places and nobody else writes there, so no lock is needed. For reports
there are two, for the odd and the even epochs: a trainer that is in the next epoch already leaves
alone what a slow one has still to read of this one. It cannot be two ahead, since it waits for all
at the end of each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import tensorflow as tf

from tfdist.barrier.connection import PS_LOST, check_ps, close_session
from tfdist.data.ledger import Range
from tfdist.deadline import Deadline
from tfdist.errors import BrokenBarrierError
from tfdist.ps.retry import retry_duplicate_request
from tfdist.task import Task, session_target

ANSWER_SECS = 30.0
RECHECK_SECS = 2.0  # TensorFlow waits for a ps that is gone; it is looked for this often


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


class EpochState:
    """One trainer's way to the places of all; blocks for 30 s at most for an answer.

    Whoever gets none has passed a barrier that others have passed too, and cannot go on in step
    with them. So all methods raise BrokenBarrierError where the ps was lost, or stays silent.

    Args:
        task: who this is.
        name: the same on every trainer.
    """

    def __init__(self, task: Task, name: str) -> None:
        ranks = range(len(task.trainers))
        with tf.Graph().as_default() as graph, tf.compat.v1.device("/job:ps/task:0/device:CPU:0"):
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
        config = tf.compat.v1.ConfigProto(
            device_filters=["/job:ps/task:0"], operation_timeout_in_ms=int(RECHECK_SECS * 1000)
        )
        self._name, self._address = name, task.cluster_spec["ps"][0]
        target = session_target(self._address)
        self._session = tf.compat.v1.Session(target, graph=graph, config=config)

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
        """Gives the connection to the ps back."""
        close_session(self._session, self._address)

    def _run(self, fetch: Any, text: str | None = None) -> Any:
        feed = {} if text is None else {self._text: text}
        answer = Deadline(ANSWER_SECS)
        while True:
            try:
                return self._ask(fetch, feed)
            except PS_LOST as error:
                reason = f"ps:0 was lost or restarted: {error}"
                raise BrokenBarrierError(self._name, reason) from error
            except tf.errors.DeadlineExceededError as error:
                # To put the same again changes nothing.
                if answer.expired:
                    reason = f"ps:0 has not answered for {answer.elapsed:.0f} s"
                    raise BrokenBarrierError(self._name, reason) from error

    def _ask(self, fetch: Any, feed: dict[Any, str]) -> Any:
        try:
            return retry_duplicate_request(self._session.run, fetch, feed)
        except tf.errors.DeadlineExceededError:
            check_ps(self._address)
            raise


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
