"""Jobs that only look as if they hung: each makes progress again by itself.

Most fixed jobs take as long, but report progress meanwhile.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdist.barrier.interface import Barrier
from tfdist.cluster.server import start_server, worker_server
from tfdist.deadline import Deadline
from tfdist.repro.case import Actor
from tfdist.repro.toy import (
    BATCH,
    PaddedShare,
    bare_session,
    global_step,
    gradients,
    in_graph,
    iterator,
    share,
    train_to_the_end,
    updates,
    wait_for_all,
)
from tfdist.train import graph

STEPS = 4  # batches of each trainer
_LONG_SECS = 20.0  # of work without a report of progress
_REPORTED_SECS = 4.0  # of work with reports; longer than the stall limit of the case
_PIECE_SECS = 0.4
_TUNED_SECS = 11.0  # the tuning thread then sleeps: from 10.2 s to 20.5 s
_INPUTS = 4


@in_graph
def nonchief_start(actor: Actor) -> None:
    """The worker checks the variables before they are initialized, and again only after 30 s."""
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = updates(task, number)
    scaffold = None
    if task.is_chief:
        actor.wait_for("worker:1 has checked")
    else:
        lacking = tf.compat.v1.report_uninitialized_variables()
        with tf.device(task.device):
            checked = _announced(actor, "worker:1 has checked", lacking)
        scaffold = tf.compat.v1.train.Scaffold(ready_for_local_init_op=checked)
    with tf.compat.v1.train.MonitoredTrainingSession(
        master=start_server(task).target,
        is_chief=task.is_chief,
        scaffold=scaffold,
        config=tf.compat.v1.ConfigProto(device_filters=task.device_filters),
    ) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def nonchief_start_fixed(actor: Actor) -> None:
    """graph.session checks 20 times a second."""
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH))
    step = updates(task, values := number.get_next())
    if task.is_chief:
        actor.wait_for("worker:1 ready")
    actor.announce(f"{task.name} ready")
    with worker_server(task) as target, graph.session(task, target) as session:
        session.run(number.initializer)
        train_to_the_end(actor, session, step, values)


@in_graph
def stop_grace(actor: Actor) -> None:
    """The chief's session waits for its own thread, which waits for gradients."""
    task, trainers = actor.task, len(actor.task.trainers)
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH)).get_next()
    count = global_step(task)
    with tf.compat.v1.device(graph.device_setter(task)):
        optimizer = tf.compat.v1.train.SyncReplicasOptimizer(
            tf.compat.v1.train.GradientDescentOptimizer(0.1), trainers
        )
        step = optimizer.apply_gradients(gradients(task, optimizer, number), global_step=count)
    hook = optimizer.make_session_run_hook(task.is_chief, num_tokens=0)
    with bare_session(actor, [hook]) as session:
        train_to_the_end(actor, session, step, number)
        if task.is_chief:
            actor.wait_for("ended worker:1")  # the chief's thread waits for gradients meanwhile


@in_graph
def stop_grace_fixed(actor: Actor) -> None:
    """The trainers stay in step without a thread."""
    task, data = actor.task, PaddedShare(actor, [STEPS, STEPS])
    step = graph.apply_if(data.has_value, lambda: updates(task, data.number, data.weight))
    with worker_server(task) as target, graph.session(task, target) as session:
        data.train(session, step, together=True)


@in_graph
def close(actor: Actor) -> None:
    """The tuning thread of an input keeps the session from closing."""
    _train_and_close(actor, tunes=True, seconds=_TUNED_SECS)


@in_graph
def close_fixed(actor: Actor) -> None:
    """The inputs are not autotuned, as in `endless_batches`."""
    _train_and_close(actor, tunes=False, seconds=_PIECE_SECS)


@in_graph
def imports(actor: Actor) -> None:
    """The worker imports a large package after 2 steps, and the chief's step waits for it."""
    _train_together(actor, between=lambda session: _import(actor, "whole", _LONG_SECS))


@in_graph
def imports_fixed(actor: Actor) -> None:
    """The worker imports one part after another, and reports progress after each."""

    def import_parts(session: Any) -> None:
        for number in range(round(_REPORTED_SECS / _PIECE_SECS)):
            _import(actor, f"part_{number}", _PIECE_SECS)
            actor.step()

    _train_together(actor, between=import_parts)


@in_graph
def long_step(actor: Actor) -> None:
    """A Python function in the worker's step takes a long time."""
    _train_together(actor, through=_for(_LONG_SECS))


@in_graph
def long_step_fixed(actor: Actor) -> None:
    """The function reports progress while it works."""
    _train_together(actor, through=_for(_REPORTED_SECS, actor.step))


@in_graph
def long_step_in_python(actor: Actor) -> None:
    """The worker's script takes a long time between two steps."""
    _train_together(actor, between=lambda session: _take(_LONG_SECS))


@in_graph
def long_step_in_python_fixed(actor: Actor) -> None:
    """The script reports progress while it works."""
    _train_together(actor, between=lambda session: _take(_REPORTED_SECS, actor.step))


@in_graph
def long_step_in_tensorflow(actor: Actor) -> None:
    """One session.run of the worker computes for a long time."""
    compute = _compute(actor, _LONG_SECS)
    _train_together(actor, between=lambda session: session.run(compute))


@in_graph
def long_step_in_tensorflow_fixed(actor: Actor) -> None:
    """The worker computes in several runs, and reports progress after each."""
    compute = _compute(actor, _PIECE_SECS)

    def compute_pieces(session: Any) -> None:
        for _ in range(round(_REPORTED_SECS / _PIECE_SECS)):
            session.run(compute)
            actor.step()

    _train_together(actor, between=compute_pieces)


@in_graph
def slow_input(actor: Actor) -> None:
    """A Python function in the worker's input takes a long time for one batch."""
    _train_together(actor, parse=_for(_LONG_SECS))


@in_graph
def slow_input_fixed(actor: Actor) -> None:
    """The function reports progress while it works."""
    _train_together(actor, parse=_for(_REPORTED_SECS, actor.step))


@in_graph
def barrier_op(actor: Actor) -> None:
    """The chief waits in its step, in the Python function of a `Barrier.op`."""
    step = Barrier(actor.task, "step", timeout=60)
    _train_together(
        actor, between=lambda session: _take(_LONG_SECS), wait=lambda after: step.op(after=[after])
    )


@in_graph
def barrier_op_fixed(actor: Actor) -> None:
    """The worker reports progress while it works."""
    step = Barrier(actor.task, "step", timeout=60)
    _train_together(
        actor,
        between=lambda session: _take(_REPORTED_SECS, actor.step),
        wait=lambda after: step.op(after=[after]),
    )


@in_graph
def evaluation(actor: Actor) -> None:
    """The chief evaluates after its last step, and the worker waits at a barrier."""
    _train_and_evaluate(actor, lambda session: _take(_LONG_SECS))


@in_graph
def evaluation_fixed(actor: Actor) -> None:
    """The chief reports progress while it evaluates."""
    _train_and_evaluate(actor, lambda session: _take(_REPORTED_SECS, actor.step))


@in_graph
def chief_saves(actor: Actor) -> None:
    """The chief copies a checkpoint to a slow disk in the action of a barrier."""
    _train_and_save(actor, lambda: _copy(_LONG_SECS))


@in_graph
def chief_saves_fixed(actor: Actor) -> None:
    """The chief copies one file after another, and reports progress after each."""

    def copy_files() -> None:
        for _ in range(round(_REPORTED_SECS / _PIECE_SECS)):
            _copy(_PIECE_SECS)
            actor.step()

    _train_and_save(actor, copy_files)


@in_graph
def evaluation_after_worker_death(actor: Actor) -> None:
    """The worker is killed after its last step; the chief evaluates without it."""
    _die_or_evaluate(actor, lambda: _take(_LONG_SECS))


@in_graph
def evaluation_after_worker_death_fixed(actor: Actor) -> None:
    """The chief reports progress while it evaluates."""
    _die_or_evaluate(actor, lambda: _take(_REPORTED_SECS, actor.step))


def _train_together(
    actor: Actor,
    *,
    between: Callable[[Any], object] = lambda session: None,
    through: Callable[[Any], Any] | None = None,
    parse: Callable[[Any], Any] | None = None,
    wait: Callable[[Any], Any] | None = None,
) -> None:
    """Trains in steps that wait for all trainers; after 2 steps the worker takes a long time.

    Args:
        actor: this trainer.
        between: called by the worker after half of its steps.
        through: called with each batch in the worker's step.
        parse: called with each batch in the worker's input.
        wait: makes the operation that waits for all trainers; by default queues on the ps.
    """
    task, slow = actor.task, not actor.task.is_chief
    number = iterator(_read_ahead(actor, parse if slow else None)).get_next()
    if slow and through is not None:
        with tf.device(task.device):
            number = _called(through, number)
    update = updates(task, number)
    step = wait_for_all(task, update) if wait is None else wait(update)
    with bare_session(actor) as session:
        for turn in range(STEPS):
            if slow and turn == STEPS // 2:
                session.run_step_fn(lambda step_context: between(step_context.session))
            actor.step(session.run([step, number])[1])


def _read_ahead(actor: Actor, parse: Callable[[Any], Any] | None) -> tf.data.Dataset:
    """The batches of this trainer, read from files and a generator by several threads."""
    first = BATCH * STEPS * actor.task.rank
    for number in range(STEPS):
        path = actor.folder / f"{actor.task.rank}-{number}"
        start = first + BATCH * number
        path.write_text("".join(f"{line}\n" for line in range(start, start + BATCH)), "ascii")
    paths = [str(actor.folder / f"{actor.task.rank}-{number}") for number in range(STEPS)]
    names = tf.data.Dataset.from_generator(
        lambda: iter(paths), output_signature=tf.TensorSpec([], tf.string)
    )
    lines = names.interleave(
        lambda name: tf.data.TextLineDataset(name).batch(BATCH), STEPS, num_parallel_calls=2
    )
    batches = lines.map(lambda batch: tf.strings.to_number(batch, tf.int64), num_parallel_calls=2)
    if parse is not None:
        batches = batches.map(lambda batch: _called(parse, batch))
    return batches.prefetch(1)


def _train_and_evaluate(actor: Actor, evaluate: Callable[[Any], object]) -> None:
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor) as session:
        epoch = Barrier(task, "epoch", timeout=60)
        train_to_the_end(actor, session, step, number)
        if task.is_chief:
            evaluate(session)
        epoch.wait()


def _train_and_save(actor: Actor, save: Callable[[], object]) -> None:
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor) as session:
        epoch = Barrier(task, "epoch", action=save, timeout=60)
        train_to_the_end(actor, session, step, number)
        epoch.wait()


def _die_or_evaluate(actor: Actor, evaluate: Callable[[], object]) -> None:
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = updates(task, number)
    with bare_session(actor) as session:
        train_to_the_end(actor, session, step, number)
        if task.is_chief:
            actor.wait_for("ended worker:1")
            evaluate()
        else:
            actor.fault("kill", "worker:1")


def _train_and_close(actor: Actor, *, tunes: bool, seconds: float) -> None:
    """Trains, waits for `seconds` and closes the session; one of several inputs mostly races.

    The tuning thread sleeps ever longer, up to a minute. When it is woken to end, it may check for
    the cancellation before that is set. Then it sleeps again, and the session waits for it.
    """
    task, options = actor.task, tf.data.Options()
    options.autotune.enabled = tunes
    numbers = share(task, [STEPS, STEPS]).batch(BATCH).with_options(options)
    inputs = [tf.compat.v1.data.make_initializable_iterator(numbers) for _ in range(_INPUTS)]
    values = [made.get_next() for made in inputs]
    step = updates(task, values[0])
    with bare_session(actor) as session:
        if tunes:
            actor.describe(close_secs=60.0)
        session.run([made.initializer for made in inputs])
        session.run(values[1:])
        train_to_the_end(actor, session, step, values[0])
        _take(seconds, actor.step)


def _take(seconds: float, note: Callable[[], object] = lambda: None) -> None:
    """Takes `seconds`, and calls `note` every 0.4 s."""
    deadline = Deadline(seconds)
    while not deadline.expired:
        time.sleep(_PIECE_SECS)
        note()


def _for(seconds: float, note: Callable[[], object] = lambda: None) -> Callable[[Any], Any]:
    """A function that returns its argument; the third call takes `seconds`."""
    calls = []

    def identity(value: Any) -> Any:
        calls.append(value)
        if len(calls) == STEPS - 1:
            _take(seconds, note)
        return value

    return identity


def _called(function: Callable[[Any], Any], value: Any) -> Any:
    """The result of a Python function for a tensor, in a graph."""
    given = tf.py_function(function, [value], value.dtype)
    given.set_shape(value.shape)
    return given


def _compute(actor: Actor, seconds: float) -> Any:
    """An operation that multiplies matrices for `seconds`."""
    with tf.device(actor.task.device):
        end, matrix = tf.timestamp() + seconds, tf.eye(200)
        return tf.while_loop(
            lambda product: tf.timestamp() < end,
            lambda product: [tf.matmul(product, matrix)],
            [tf.ones([200, 200])],
        )


def _import(actor: Actor, name: str, seconds: float) -> None:
    """Imports a new module, which takes `seconds`."""
    (actor.folder / f"{name}.py").write_text(f"import time\ntime.sleep({seconds})\n", "ascii")
    if str(actor.folder) not in sys.path:
        sys.path.append(str(actor.folder))
    importlib.import_module(name)


def _copy(seconds: float) -> None:
    """Waits for a process that runs for `seconds`."""
    subprocess.run(["sleep", str(seconds)], check=True)


def _announced(actor: Actor, event: str, value: Any) -> Any:
    """The same tensor; the event is announced when it has been computed."""

    def announce(given: Any) -> Any:
        actor.announce(event)
        return given

    return tf.numpy_function(announce, [value], value.dtype)
