"""The input of a trainer never answers.

The fixed jobs read in a Python thread with a deadline, because a TensorFlow thread that is stuck in
a read cannot be ended. A trainer whose input hangs releases its split, and the other reads it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice

import tensorflow as tf

from tfdist.cluster.server import worker_server
from tfdist.repro.case import Actor
from tfdist.repro.toy import (
    BATCH,
    PS,
    bare_session,
    in_graph,
    iterator,
    read_within,
    train_to_the_end,
    updates,
    wait_for_all,
)
from tfdist.splits import SplitQueue
from tfdist.train import graph

EACH = 4 * BATCH  # examples of each trainer
_ANSWER_SECS = 0.5


@in_graph
def generator_never_answers(actor: Actor) -> None:
    """The worker's generator waits forever, and the chief's step waits for the worker."""
    task = actor.task

    def numbers() -> Iterator[int]:
        return _generated(actor, EACH * task.rank, EACH * (task.rank + 1))

    data = tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec([], tf.int64))
    number = iterator(data.batch(BATCH)).get_next()
    step = wait_for_all(task, updates(task, number))
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def generator_never_answers_fixed(actor: Actor) -> None:
    """The generator has a deadline for each number."""
    _train_on_what_answers(actor, lambda start, stop: _generated(actor, start, stop))


@in_graph
def file_never_answers(actor: Actor) -> None:
    """The worker's file cannot be opened, as on a mount whose server is gone."""
    number = iterator(_lines(actor).batch(BATCH)).get_next()
    step = updates(actor.task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def file_never_answers_fixed(actor: Actor) -> None:
    """The read has a deadline for each line."""
    path = _file(actor)

    def numbers(start: int, stop: int) -> Iterator[int]:
        with open(path) as lines:
            yield from map(int, islice(lines, start, stop))

    _train_on_what_answers(actor, numbers)


@in_graph
def on_the_ps_with_timeout(actor: Actor) -> None:
    """The ps reads the file for the worker; the worker's run times out, and its share is lost."""
    with tf.device(PS):
        data = _lines(actor).batch(BATCH)
        number = iterator(data, shared_name=actor.task.name).get_next()
    step = updates(actor.task, number)
    options = tf.compat.v1.RunOptions(timeout_in_ms=1000)
    with bare_session(actor) as session:
        try:
            while True:
                actor.step(session.run([step, number], options=options)[1])
        except tf.errors.OutOfRangeError:
            pass


@in_graph
def on_the_ps_with_timeout_fixed(actor: Actor) -> None:
    """Each trainer reads its own file, with a deadline."""
    file_never_answers_fixed(actor)


def _generated(actor: Actor, start: int, stop: int) -> Iterator[int]:
    """Yields the example numbers; on the worker it hangs after one batch."""
    for number in range(start, stop):
        if not actor.task.is_chief and number == start + BATCH:
            threading.Event().wait()
        yield number


def _file(actor: Actor) -> str:
    """A file with all numbers; on the worker it is a pipe that no process writes to."""
    path = actor.folder / f"mount-{actor.task.rank}"
    if actor.task.is_chief:
        path.write_text("".join(f"{number}\n" for number in range(2 * EACH)), "ascii")
    else:
        os.mkfifo(path)  # opening it for reading waits for a writer
    return str(path)


def _lines(actor: Actor) -> tf.data.Dataset:
    """The example numbers of this trainer's share, from the file."""
    lines = tf.data.TextLineDataset(_file(actor)).skip(EACH * actor.task.rank).take(EACH)
    return lines.map(lambda line: tf.strings.to_number(line, tf.int64))


def _train_on_what_answers(actor: Actor, numbers: Callable[[int, int], Iterator[int]]) -> None:
    """Trains on splits; a trainer whose input hangs releases its split and ends."""
    task = actor.task
    splits = [(start, start + 2 * BATCH) for start in range(0, 2 * EACH, 2 * BATCH)]
    queue = SplitQueue(task, "splits", splits, batch_size=BATCH, timeout=30)
    number = tf.compat.v1.placeholder(tf.int64, [None])
    commit = queue.commit_after([updates(task, number)])
    with worker_server(task) as target, graph.session(task, target) as session:
        if task.is_chief:
            actor.wait_for("worker:1 has a split")
        for split in queue:
            actor.announce(f"{task.name} has a split")
            values = read_within(_ANSWER_SECS, numbers(split.offset, split.stop), _late)
            try:
                while not split.finished:
                    read = list(islice(values, split.reserved - split.offset))
                    answer = session.run(commit, {number: read, **split.feed})
                    actor.step(read)
                    split.committed(answer)
            except TimeoutError as error:
                print(f"{task.name} ends: {error}", file=sys.stderr)
                split.release()
                return


def _late() -> None:
    raise TimeoutError(f"no data from the input for {_ANSWER_SECS} s")
