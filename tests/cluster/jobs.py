"""The functions that the tests run as tasks; processes import them."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import tfdist
from tfdist.testing import poll_until


def name_and_config(task):
    """Returns the task's name and TF_CONFIG; starts no server."""
    return task.name, os.environ["TF_CONFIG"]


def meet(task):
    """Waits at a barrier; returns the result of `wait` and the next generation."""
    with tfdist.worker_server(task), tfdist.Barrier(task, "meet", timeout=30) as barrier:
        return barrier.wait(), barrier.generation


def fail_at(task, name, how, timeout=60):
    """Trainer `name` fails while the others wait at a barrier."""
    with tfdist.worker_server(task):
        barrier = tfdist.Barrier(task, "fail", timeout=timeout)
        if task.name == name:
            how()
        return barrier.wait()


def raise_value_error():
    raise ValueError("bad record")


def raise_config_error():
    raise tfdist.ConfigError("--rate", -1, "must be at least 0")


def exit_with_7():
    sys.exit(7)


def note_and_wait(task, folder):
    """Writes its pid into `folder`, then waits at a barrier until the file `go` exists."""
    with tfdist.worker_server(task):
        barrier = tfdist.Barrier(task, "go", timeout=60)
        path = pathlib.Path(folder, task.name)
        draft = path.with_suffix(".new")
        draft.write_text(str(os.getpid()))
        draft.rename(path)
        if task.is_chief:
            poll_until(pathlib.Path(folder, "go").exists, "go exists", timeout=60)
        return barrier.wait()


def coordinate(task):
    """Ten times adds 1 on a worker to a variable on the ps; returns the sum."""
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(task.cluster_spec), rpc_layer="grpc"
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        total = tf.Variable(0.0)

    @tf.function
    def add_one():
        total.assign_add(1.0)

    for _ in range(10):
        coordinator.schedule(add_one)
    coordinator.join()
    return task.name, float(total.numpy())


def evaluate_or_train(task, folder):
    """A trainer writes the file `model`; the evaluator waits for it and writes `evaluated`."""
    if task.task_type != "evaluator":
        pathlib.Path(folder, "model").write_text(task.name)
        return task.name
    poll_until(pathlib.Path(folder, "model").exists, "the model exists", timeout=60)
    pathlib.Path(folder, "evaluated").touch()
    return None


def fail_in_the_first_attempt(task, folder):
    """Trainer 1 fails in its first attempt; then all meet."""
    mark = pathlib.Path(folder, "failed")
    if task.rank == 1 and not mark.exists():
        mark.touch()
        raise_value_error()
    return meet(task)


def evaluator_hangs(task):
    """Blocks in the evaluator."""
    if task.task_type == "evaluator":
        threading.Event().wait()
    return task.name


def count_attempts_and_fail(task, folder):
    """Fails, with the number of the attempt."""
    pathlib.Path(folder, str(os.getpid())).touch()
    raise ValueError(f"attempt {len(os.listdir(folder))}")


def leave_pid(task, folder):
    """Writes its pid into `folder`."""
    pathlib.Path(folder, task.name).write_text(str(os.getpid()))


def return_unreadable(task):
    """Returns a value that can be pickled but not unpickled."""
    return _Unreadable()


class _Unreadable:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ValueError("not for the launcher")


def speak(task):
    """Prints more than a pipe holds."""
    print("x" * 2**20, flush=True)


def only_the_chief_ends(task):
    """Blocks in all trainers but the chief."""
    if not task.is_chief:
        threading.Event().wait()


def save_on_sigterm(task, folder, *, fails):
    """Waits for SIGTERM, then saves; with `fails` worker:1 fails once worker:0 waits."""

    def save(number, frame):
        pathlib.Path(folder, f"saved-{task.name}").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    pathlib.Path(folder, task.name).touch()
    if fails and task.name == "worker:1":
        poll_until(pathlib.Path(folder, "worker:0").exists, "worker:0 waits")
        raise_value_error()
    threading.Event().wait()


def fail_on_sigterm(task, folder):
    """Waits for SIGTERM, then fails."""
    signal.signal(signal.SIGTERM, lambda number, frame: raise_value_error())
    pathlib.Path(folder, task.name).touch()
    threading.Event().wait()


def ignore_sigterm(task, folder):
    """Starts a process that ignores SIGTERM too, writes its pid, and waits."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    draft = pathlib.Path(folder, "child.new")
    draft.write_text(str(child.pid))
    draft.rename(draft.with_suffix(""))
    threading.Event().wait()


class Remade(Exception):
    """A result or an error that calls a function when it is unpickled."""

    def __init__(self, make, *arguments):
        super().__init__("bad record")
        self._made = make, arguments

    def __reduce__(self):
        return self._made


class RemadeFunction(Remade):
    """A function that calls another one when it is unpickled."""

    def __call__(self, task):
        """Returns the name of the task."""
        return task.name


class Unsendable:
    """A result that ends the program when it is pickled."""

    def __reduce__(self):
        sys.exit(3)


class NoText:
    """An exit code without a text."""

    def __str__(self):
        raise ZeroDivisionError


class OddSyntax(SyntaxError):
    """An error that cannot be printed."""

    def __init__(self):
        super().__init__("x")
        self.text, self.lineno, self.filename = 5, 1, "a.py"


def give_back(task, make):
    """Returns what `make()` returns."""
    return make()


def throw(task, make):
    """Raises what `make()` returns."""
    raise make()


def throw_in(kind):
    """Raises an error of the class."""
    raise kind("mine")
