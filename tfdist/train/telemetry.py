"""What the trainers tell the chief of their work at the end of an epoch, by a queue on ps 0."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import tensorflow as tf

from tfdist.errors import TfdistError
from tfdist.ledger import Ledger, Range
from tfdist.mistaken import retry_if_mistaken
from tfdist.task import Task, session_target

_TIMEOUT_SECS = 30.0


@dataclass(frozen=True)
class EpochReport:
    """What one trainer did in one epoch.

    Attributes:
        trainer: its name.
        epoch: counted from 1.
        steps: updates that it applied.
        examples: real examples in them.
        seconds: from its first step to its arrival at the barrier.
        visits: the examples, as ranges.
        left: when it left the barrier of the epoch before, in seconds by the clock of ps 0.
    """

    trainer: str
    epoch: int
    steps: int
    examples: int
    seconds: float
    visits: tuple[Range, ...] = field(default=(), repr=False)
    left: float | None = None


class Reports:
    """Carries the reports of all trainers to the chief.

    A trainer sends its report before it arrives at the barrier; in the barrier's action the chief
    collects them, and all are there.
    """

    def __init__(self, task: Task, name: str) -> None:
        self._trainers, self._name = task.trainers, name
        with tf.Graph().as_default() as graph, tf.compat.v1.device("/job:ps/task:0/device:CPU:0"):
            box = tf.queue.FIFOQueue(
                2**31 - 1, [tf.string], shapes=[[]], shared_name=f"tfdist/reports/{name}"
            )
            self._text = tf.compat.v1.placeholder(tf.string, [])
            self._put = box.enqueue(self._text)
            self._take = box.dequeue_many(box.size())
            self._now = tf.timestamp()
        config = tf.compat.v1.ConfigProto(
            device_filters=["/job:ps/task:0"], operation_timeout_in_ms=int(_TIMEOUT_SECS * 1000)
        )
        address = task.cluster_spec["ps"][0]
        self._session = tf.compat.v1.Session(session_target(address), graph=graph, config=config)

    def send(self, report: EpochReport) -> None:
        """Puts the report where the chief finds it."""
        self._run(self._put, {self._text: json.dumps(asdict(report))})

    def collect(self, epoch: int) -> list[EpochReport]:
        """All trainers' reports of `epoch` by rank; does not wait for any.

        Raises:
            TfdistError: some trainer has not sent one.
        """
        latest: dict[str, EpochReport] = {}
        for text in self._run(self._take):
            report = _parse(json.loads(text))
            if report.epoch == epoch:  # a restarted trainer may have sent more than one
                latest[report.trainer] = report
        missing = [name for name in self._trainers if name not in latest]
        if missing:
            raise TfdistError(
                f"no report of epoch {epoch} from {', '.join(missing)}; "
                "each trainer has to send one before it arrives at the barrier"
            )
        return [latest[name] for name in self._trainers]

    def now(self) -> float:
        """Seconds by the clock of ps 0, the same for all trainers."""
        return float(self._run(self._now))

    def close(self) -> None:
        """Gives the connection to the ps back."""
        self._session.close()

    def _run(self, *args: Any) -> Any:
        return retry_if_mistaken(self._session.run, *args)


def merged(reports: list[EpochReport]) -> Ledger:
    """One ledger of what all trainers visited."""
    ledger = Ledger()
    for report in reports:
        ledger.merge(Ledger(report.visits))
    return ledger


def _parse(values: dict[str, object]) -> EpochReport:
    visits = tuple((start, stop) for start, stop in values.pop("visits"))  # type: ignore[attr-defined]
    return EpochReport(**values, visits=visits)  # type: ignore[arg-type]
