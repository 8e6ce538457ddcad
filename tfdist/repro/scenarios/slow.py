"""Jobs that only look as if they hung: each gets on by itself, after a while.

Cured, the same job says now and then that it gets on.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdist.barrier import Barrier
from tfdist.cluster.server import start_server, worker_server
from tfdist.deadline import Deadline
from tfdist.repro.actor import Actor
from tfdist.repro.padded_share import PaddedShare
from tfdist.repro.toy import (
    BATCH,
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
_LONG_SECS = 20.0  # that something takes of which nobody hears
_HEARD_SECS = 4.0  # the same, if one hears of it; longer than what passes for a stall
_PIECE_SECS = 0.4
_TUNED_SECS = 11.0  # then the thread that tunes sleeps for 10 s: from 10.2 s on to 20.5 s
_INPUTS = 4


@in_graph
def nonchief_start(actor: Actor) -> None:
    """The worker looks before the chief has initialised, and again after 30 s only."""
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH)).get_next()
    step = updates(task, number)
    scaffold = None
    if task.is_chief:
        actor.hear("worker:1 has looked")
    else:
        lacking = tf.compat.v1.report_uninitialized_variables()
        with tf.device(task.device):
            looked = _told(actor, "worker:1 has looked", lacking)
        scaffold = tf.compat.v1.train.Scaffold(ready_for_local_init_op=looked)
    with tf.compat.v1.train.MonitoredTrainingSession(
        master=start_server(task).target,
        is_chief=task.is_chief,
        scaffold=scaffold,
        config=tf.compat.v1.ConfigProto(device_filters=task.device_filters),
    ) as session:
        train_to_the_end(actor, session, step, number)


@in_graph
def nonchief_start_fixed(actor: Actor) -> None:
    """The session of tfdist looks each moment."""
    task = actor.task
    number = iterator(share(task, [STEPS, STEPS]).batch(BATCH))
    step = updates(task, values := number.get_next())
    if task.is_chief:
        actor.hear("worker:1 comes")
    actor.tell(f"{task.name} comes")
    with worker_server(task) as target, graph.session(task, target) as session:
        session.run(number.initializer)
        train_to_the_end(actor, session, step, values)


@in_graph
def stop_grace(actor: Actor) -> None:
    """A thread of the synchronous chief waits for gradients, and the end of the chief for it."""
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
            actor.hear("ended worker:1")  # until then its thread waits for the next gradients


@in_graph
def stop_grace_fixed(actor: Actor) -> None:
    """They agree on their steps at a barrier, for which no thread is needed."""
    task, data = actor.task, PaddedShare(actor, [STEPS, STEPS])
    step = graph.apply_if(data.has_value, lambda: updates(task, data.number, data.weight))
    with worker_server(task) as target, graph.session(task, target) as session:
        data.train(session, step, together=True)


@in_graph
def close(actor: Actor) -> None:
    """Inputs that tune themselves: a thread of one of them keeps the session from being closed."""
    _train_and_close(actor, tunes=True, seconds=_TUNED_SECS)


@in_graph
def close_fixed(actor: Actor) -> None:
    """No input tunes itself, as `endless_batches` has it."""
    _train_and_close(actor, tunes=False, seconds=_PIECE_SECS)


@in_graph
def imports(actor: Actor) -> None:
    """The worker imports something large in the middle, and the chief waits for its step."""
    _train_together(actor, between=lambda session: _import(actor, "whole", _LONG_SECS))


@in_graph
def imports_fixed(actor: Actor) -> None:
    """It imports one part after the other, and says so."""

    def import_parts(session: Any) -> None:
        for number in range(round(_HEARD_SECS / _PIECE_SECS)):
            _import(actor, f"part_{number}", _PIECE_SECS)
            actor.step()

    _train_together(actor, between=import_parts)


@in_graph
def long_step(actor: Actor) -> None:
    """A Python function in the step of the worker takes long."""
    _train_together(actor, through=_for(_LONG_SECS))


@in_graph
def long_step_fixed(actor: Actor) -> None:
    """It says now and then that it gets on."""
    _train_together(actor, through=_for(_HEARD_SECS, actor.step))


@in_graph
def long_step_in_python(actor: Actor) -> None:
    """The script of the worker takes long between two steps."""
    _train_together(actor, between=lambda session: _take(_LONG_SECS))


@in_graph
def long_step_in_python_fixed(actor: Actor) -> None:
    """It says now and then that it gets on."""
    _train_together(actor, between=lambda session: _take(_HEARD_SECS, actor.step))


@in_graph
def long_step_in_tensorflow(actor: Actor) -> None:
    """The worker computes for long in one run."""
    compute = _compute(actor, _LONG_SECS)
    _train_together(actor, between=lambda session: session.run(compute))


@in_graph
def long_step_in_tensorflow_fixed(actor: Actor) -> None:
    """It computes in several runs, and says so after each."""
    compute = _compute(actor, _PIECE_SECS)

    def compute_pieces(session: Any) -> None:
        for _ in range(round(_HEARD_SECS / _PIECE_SECS)):
            session.run(compute)
            actor.step()

    _train_together(actor, between=compute_pieces)


@in_graph
def slow_input(actor: Actor) -> None:
    """A Python function in the input of the worker takes long for a batch."""
    _train_together(actor, parse=_for(_LONG_SECS))


@in_graph
def slow_input_fixed(actor: Actor) -> None:
    """It says now and then that it gets on."""
    _train_together(actor, parse=_for(_HEARD_SECS, actor.step))


@in_graph
def barrier_op(actor: Actor) -> None:
    """The chief waits within its step at a barrier of tfdist, which Python calls there too."""
    step = Barrier(actor.task, "step", timeout=60)
    _train_together(
        actor, between=lambda session: _take(_LONG_SECS), wait=lambda after: step.op(after=[after])
    )


@in_graph
def barrier_op_fixed(actor: Actor) -> None:
    """The worker says now and then that it gets on."""
    step = Barrier(actor.task, "step", timeout=60)
    _train_together(
        actor,
        between=lambda session: _take(_HEARD_SECS, actor.step),
        wait=lambda after: step.op(after=[after]),
    )


@in_graph
def evaluation(actor: Actor) -> None:
    """The chief evaluates between two epochs, and the other waits at a barrier."""
    _train_and_evaluate(actor, lambda session: _take(_LONG_SECS))


@in_graph
def evaluation_fixed(actor: Actor) -> None:
    """It says now and then that it gets on."""
    _train_and_evaluate(actor, lambda session: _take(_HEARD_SECS, actor.step))


@in_graph
def chief_saves(actor: Actor) -> None:
    """The chief copies what it has saved to a slow disk, in the action of a barrier."""
    _train_and_save(actor, lambda: _copy(_LONG_SECS))


@in_graph
def chief_saves_fixed(actor: Actor) -> None:
    """It copies one file after the other, and says so."""

    def copy_files() -> None:
        for _ in range(round(_HEARD_SECS / _PIECE_SECS)):
            _copy(_PIECE_SECS)
            actor.step()

    _train_and_save(actor, copy_files)


@in_graph
def evaluation_after_a_death(actor: Actor) -> None:
    """The worker is dead, but had nothing left to do, and the chief needs nobody to evaluate."""
    _die_or_evaluate(actor, lambda: _take(_LONG_SECS))


@in_graph
def evaluation_after_a_death_fixed(actor: Actor) -> None:
    """It says now and then that it gets on."""
    _die_or_evaluate(actor, lambda: _take(_HEARD_SECS, actor.step))


def _train_together(
    actor: Actor,
    *,
    between: Callable[[Any], object] = lambda session: None,
    through: Callable[[Any], Any] | None = None,
    parse: Callable[[Any], Any] | None = None,
    wait: Callable[[Any], Any] | None = None,
) -> None:
    """Each step waits for that of the other; in the middle the worker takes its time.

    Args:
        actor: of this trainer.
        between: what the worker does after half of its steps.
        through: a function of a batch that the worker calls in each step.
        parse: the same in its input.
        wait: the operation that waits for the others; else it does so in queues on the ps.
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
    """The batches of this trainer, from files and a generator, by several threads."""
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
            actor.hear("ended worker:1")
            evaluate()
        else:
            actor.fault("kill", "worker:1")


def _train_and_close(actor: Actor, *, tunes: bool, seconds: float) -> None:
    """Trains, for so long, and closes the session; of some inputs one mostly meets the race.

    The thread that tunes sleeps ever longer, up to a minute, and may look whether it is cancelled
    when it was woken for that and it is not yet noted. Then it sleeps on, and is waited for.
    """
    task, options = actor.task, tf.data.Options()
    options.autotune.enabled = tunes
    numbers = share(task, [STEPS, STEPS]).batch(BATCH).with_options(options)
    inputs = [tf.compat.v1.data.make_initializable_iterator(numbers) for _ in range(_INPUTS)]
    values = [made.get_next() for made in inputs]
    step = updates(task, values[0])
    with bare_session(actor) as session:
        if tunes:
            actor.about(close_secs=60.0)
        session.run([made.initializer for made in inputs])
        session.run(values[1:])
        train_to_the_end(actor, session, step, values[0])
        _take(seconds, actor.step)


def _take(seconds: float, note: Callable[[], object] = lambda: None) -> None:
    """Takes so long; notes now and then that it gets on."""
    deadline = Deadline(seconds)
    while not deadline.expired:
        time.sleep(_PIECE_SECS)
        note()


def _for(seconds: float, note: Callable[[], object] = lambda: None) -> Callable[[Any], Any]:
    """A function that gives what it is given, the third time only after so long."""
    calls = []

    def give(value: Any) -> Any:
        calls.append(value)
        if len(calls) == STEPS - 1:
            _take(seconds, note)
        return value

    return give


def _called(function: Callable[[Any], Any], value: Any) -> Any:
    """What a Python function gives for a tensor, in a graph."""
    given = tf.py_function(function, [value], value.dtype)
    given.set_shape(value.shape)
    return given


def _compute(actor: Actor, seconds: float) -> Any:
    """An operation that multiplies matrices for so long."""
    with tf.device(actor.task.device):
        end, matrix = tf.timestamp() + seconds, tf.eye(200)
        return tf.while_loop(
            lambda product: tf.timestamp() < end,
            lambda product: [tf.matmul(product, matrix)],
            [tf.ones([200, 200])],
        )


def _import(actor: Actor, name: str, seconds: float) -> None:
    """Imports a module that takes so long."""
    (actor.folder / f"{name}.py").write_text(f"import time\ntime.sleep({seconds})\n", "ascii")
    if str(actor.folder) not in sys.path:
        sys.path.append(str(actor.folder))
    importlib.import_module(name)


def _copy(seconds: float) -> None:
    """Waits for another process that does it."""
    subprocess.run(["sleep", str(seconds)], check=True)


def _told(actor: Actor, event: str, value: Any) -> Any:
    """The value, once it is there; and the event is told then."""

    def tell(given: Any) -> Any:
        actor.tell(event)
        return given

    return tf.numpy_function(tell, [value], value.dtype)
