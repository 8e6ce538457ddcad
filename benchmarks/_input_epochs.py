"""The time of a training epoch with each way to feed it.

All peers share one cluster, one graph and one model on the ps. In each round every worker runs an
epoch of each peer. The order of peers is the same for all workers and shuffled in each round; the
workers start each epoch together. A wrong result is an error: each epoch must have all batches, and
an epoch of tfdist a complete audit.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tfdist
from benchmarks import _input_model
from benchmarks._barrier_peers import QUIET
from benchmarks._input_clock import cpu_clock, server_pid
from benchmarks._input_model import BATCH, Model
from benchmarks._input_peers import STALL_SECS, Done, PlainPeers, TfdistPeers, batches
from tfdist.train import graph

BARE, TFDIST, SERVICE = "plain tf.data", "tfdist", "tf.data service"
BARE_STEPS, TFDIST_STEPS = "plain tf.data, Barrier each step", "tfdist, should_continue each step"
PEERS = (BARE, TFDIST, SERVICE, BARE_STEPS, TFDIST_STEPS)

WORKERS, FILES = 2, 8


@dataclass(frozen=True)
class Plan:
    """What to measure, as plain data for the workers.

    Attributes:
        rounds: number of rounds, after one for warming up.
        steps: steps of an epoch, of all workers together; equally many for each file.
        seed: of the order of the peers.
        paths: of the files.
        index: path of the saved `FileSet`.
        folder: of the files.
    """

    rounds: int
    steps: int
    seed: int
    paths: tuple[str, ...] = ()
    index: str = ""
    folder: str = ""

    def orders(self) -> Iterator[list[str]]:
        """The peers in the order of each round; all workers get the same."""
        rng = random.Random(self.seed)
        for _ in range(self.rounds + 1):
            yield rng.sample(PEERS, len(PEERS))


@dataclass(frozen=True)
class Pass:
    """One worker's part in an epoch.

    Attributes:
        start, stop: times by the clock of the machine.
        done: what the worker did.
        cpu: CPU seconds of the worker's process.
        ps_cpu: CPU seconds of the ps, in the whole epoch.
    """

    start: float
    stop: float
    done: Done
    cpu: float
    ps_cpu: float


# The passes of all workers, by peer and round.
Measured = dict[str, list[list[Pass]]]


def measure(rounds: int, steps: int, seed: int, limit_secs: float) -> Measured:
    """Writes the files, runs all rounds and blocks until they end.

    Raises:
        TfdistError: a worker failed, or it took longer than `limit_secs`.
    """
    with tempfile.TemporaryDirectory(prefix="input-") as folder:
        paths = _input_model.write_files(Path(folder), FILES, steps // FILES * BATCH)
        index = str(Path(folder, "index.json"))
        tfdist.data.FileSet.scan(paths).save(index)
        plan = Plan(rounds, steps, seed, tuple(paths), index, folder)
        with tfdist.local_cluster(1, WORKERS, backend="processes", surroundings=QUIET) as cluster:
            by_worker = cluster.run(partial(_work, plan), timeout=limit_secs)
    measured = {
        peer: [[worker[peer][number] for worker in by_worker] for number in range(1, rounds + 1)]
        for peer in PEERS
    }
    for peer, epochs in measured.items():
        found = [sum(one.done.steps for one in epoch) for epoch in epochs]
        if found != [steps] * rounds:
            raise tfdist.TfdistError(f"{peer}: {found} steps instead of {steps}")
    return measured


def _job(number: int) -> str:
    return f"round{number}"


def elapsed(epoch: list[Pass]) -> float:
    """Seconds from the start of the first worker to the end of the last."""
    return max(one.stop for one in epoch) - min(one.start for one in epoch)


def step_ms(epoch: list[Pass]) -> float:
    """The mean time of a step of one worker."""
    return 1e3 * elapsed(epoch) * WORKERS / sum(one.done.steps for one in epoch)


def cpu_ms(epoch: list[Pass]) -> float:
    """The mean CPU time of a step, of worker and ps together."""
    spent = sum(one.cpu for one in epoch) + max(one.ps_cpu for one in epoch)
    return 1e3 * spent / sum(one.done.steps for one in epoch)


# What a worker does.


# Keeps the servers: destroying one takes minutes (TensorFlow 2.21).
_services: list[Any] = []


def _work(plan: Plan, task: tfdist.Task) -> dict[str, list[Pass]]:
    import tensorflow as tf

    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)  # no old-optimizer warnings
    with tfdist.worker_server(task) as target:
        dispatcher = _start_service(plan, task)
        with tf.Graph().as_default():
            return _train(plan, task, target, dispatcher)


def _start_service(plan: Plan, task: tfdist.Task) -> str:
    """Starts the tf.data service on the workers; returns the target of its dispatcher."""
    import tensorflow as tf

    service = tf.data.experimental.service
    started = tfdist.Barrier(task, "service", timeout=STALL_SECS)
    target_file = Path(plan.folder, "target")
    if task.is_chief:
        _services.append(service.DispatchServer())
        files = tf.data.Dataset.from_tensor_slices(list(plan.paths))
        for number in range(plan.rounds + 1):
            service.register_dataset(
                _services[0].target, batches(files), compression=None, dataset_id=_job(number)
            )
        target_file.write_text(_services[0].target)
    started.wait()
    target = target_file.read_text()
    _services.append(
        service.WorkerServer(service.WorkerConfig(dispatcher_address=target.partition("://")[2]))
    )
    return target


def _train(plan: Plan, task: tfdist.Task, target: str, dispatcher: str) -> dict[str, list[Pass]]:
    model = Model(task)
    plain = PlainPeers(task, model, plan.paths, dispatcher)
    ours = TfdistPeers(task, model, plan.index)
    epochs: dict[str, Callable[[Any, str], Done]] = {
        BARE: plain.run,
        SERVICE: plain.run_service,
        BARE_STEPS: plain.run_in_step,
        TFDIST: ours.run,
        TFDIST_STEPS: ours.run_in_step,
    }
    with graph.session(task, target) as session:
        return _run_rounds(plan, task, {name: partial(epochs[name], session) for name in PEERS})


def _run_rounds(
    plan: Plan, task: tfdist.Task, epochs: dict[str, Callable[[str], Done]]
) -> dict[str, list[Pass]]:
    align = tfdist.Barrier(task, "align", timeout=STALL_SECS)
    ps = cpu_clock(server_pid(task.cluster_spec["ps"][0]))
    results: dict[str, list[Pass]] = {peer: [] for peer in PEERS}
    for number, order in enumerate(plan.orders()):
        for peer in order:
            align.wait()
            start, cpu, ps_cpu = time.monotonic(), time.process_time(), ps()
            done = epochs[peer](_job(number))
            stop, cpu = time.monotonic(), time.process_time() - cpu
            align.wait()
            results[peer].append(Pass(start, stop, done, cpu, ps() - ps_cpu))
    return results
