"""The barriers that are compared, and how the parties run them side by side.

In each round every party runs a block of cycles of every peer. All parties use the same order of
peers, which is shuffled in each round. A block is a list of times by the clock of the machine; the
first is taken after a cycle that aligns the parties and is not counted.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import tfdist
from tfdist.cluster.processes import Surroundings
from tfdist.deadline import Deadline
from tfdist.task import parse_address

QUEUE, COUNTER = "queue", "counter"
LIMIT = "no-op runs (the limit)"
SYNC_QUEUES = "sync queues"
COORDINATION = "coordination service"
GLOO, MONITORED = "gloo barrier", "gloo monitored_barrier"
PROCESS_BARRIER, THREAD_BARRIER = "multiprocessing.Barrier", "threading.Barrier"
PEERS = {
    "processes": (
        QUEUE,
        COUNTER,
        LIMIT,
        SYNC_QUEUES,
        COORDINATION,
        GLOO,
        MONITORED,
        PROCESS_BARRIER,
    ),
    "threads": (QUEUE, COUNTER, LIMIT, SYNC_QUEUES, THREAD_BARRIER),
}

QUIET = Surroundings(
    environment={
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "GRPC_VERBOSITY": "ERROR",
        "CUDA_VISIBLE_DEVICES": "",
    }
)

# A party that waits longer fails, and the run fails with it.
_STALL_SECS = 60.0
# Every party sends a message to every other.
_MOST_SYNC_QUEUES = 64

Stamps = list[float]
Cycle = Callable[[], object]
# Runs the cycles of a block; returns this party's stamps, or those of all parties, or none.
Block = Callable[[int], list[Stamps]]


@dataclass(frozen=True)
class Plan:
    """What to measure, as plain data for the processes of the parties.

    Attributes:
        backend: "processes" or "threads".
        parties: number of parties.
        rounds: number of rounds, after one for warming up.
        cycles: number of cycles in each block.
        seed: of the order of the peers.
        limit_secs: limit of the whole measurement.
        folder: for sockets and files of the peers.
        left_out: peers that do not take part, and why.
    """

    backend: str
    parties: int
    rounds: int
    cycles: int
    seed: int
    limit_secs: float
    folder: str = ""
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers that take part."""
        return tuple(p for p in PEERS[self.backend] if p not in dict(self.left_out))

    def orders(self) -> Iterator[list[str]]:
        """The peers in the order of each round; all parties get the same."""
        rng = random.Random(self.seed)
        for _ in range(self.rounds + 1):
            yield rng.sample(self.peers, len(self.peers))


# The stamps of all parties, by peer and round.
Measured = dict[str, list[list[Stamps]]]


def measure(plan: Plan) -> tuple[Measured, dict[str, str]]:
    """Runs the plan and blocks until it ends; also returns why peers were left out.

    Raises:
        TfdistError: a party failed, or the plan took longer than `limit_secs`.
    """
    with tempfile.TemporaryDirectory(prefix="barrier-") as folder:
        plan = replace(plan, folder=folder, left_out=tuple(_left_out(plan).items()))
        if plan.backend == "threads":
            # In a new process, because the servers of a size stay until their process ends.
            with tfdist.local_cluster(0, 1, backend="processes", surroundings=QUIET) as shell:
                function = partial(_thread_parties, plan)
                by_party = shell.run(function, timeout=plan.limit_secs)[0]
        else:
            with (
                tfdist.local_cluster(
                    1, plan.parties, backend="processes", surroundings=QUIET
                ) as cluster,
                _process_barrier(plan),
            ):
                by_party = cluster.run(partial(_process_party, plan), timeout=plan.limit_secs)
    measured = {
        peer: [
            [stamps for party in by_party for stamps in party[peer][number]]
            for number in range(1, plan.rounds + 1)  # the first one is for warming up
        ]
        for peer in plan.peers
    }
    return measured, dict(plan.left_out)


def _left_out(plan: Plan) -> dict[str, str]:
    reasons = {}
    if plan.backend == "processes" and importlib.util.find_spec("torch") is None:
        reasons = dict.fromkeys((GLOO, MONITORED), "torch is not installed")
    if plan.parties > _MOST_SYNC_QUEUES:
        reasons[SYNC_QUEUES] = f"{plan.parties * (plan.parties - 1)} messages a cycle"
    return reasons


# What a party does.


def _run_rounds(
    plan: Plan, blocks: dict[str, Block], align: Cycle
) -> dict[str, list[list[Stamps]]]:
    """All rounds of one party; its stamps by peer and round."""
    results: dict[str, list[list[Stamps]]] = {peer: [] for peer in plan.peers}
    for order in plan.orders():
        for peer in order:
            align()
            results[peer].append(blocks[peer](plan.cycles))
    return results


def _stamps(cycle: Cycle, cycles: int) -> Stamps:
    cycle()
    stamps = [time.monotonic()]
    for _ in range(cycles):
        cycle()
        stamps.append(time.monotonic())
    return stamps


def _repeat(cycle: Cycle) -> Block:
    return lambda cycles: [_stamps(cycle, cycles)]


def _process_party(plan: Plan, task: tfdist.Task) -> dict[str, list[list[Stamps]]]:
    # First, because nothing else may start TensorFlow's eager context before.
    blocks = {COORDINATION: _repeat(_coordination_cycle(task))}
    blocks |= _ps_blocks(plan, task)
    if GLOO in plan.peers:
        blocks |= _gloo_blocks(plan, task)
    blocks[PROCESS_BARRIER] = _process_barrier_block(plan, task)
    align = tfdist.Barrier(task, "align", timeout=_STALL_SECS)
    results = _run_rounds(plan, blocks, align.wait)
    align.wait()
    if task.is_chief:
        time.sleep(1)  # the coordination service ends with the chief, and the others still use it
    return results


def _thread_parties(plan: Plan, _: tfdist.Task) -> list[dict[str, list[list[Stamps]]]]:
    shared = threading.Barrier(plan.parties, timeout=_STALL_SECS)
    with tfdist.local_cluster(1, plan.parties, backend="threads") as cluster:
        # One after another: graphs do not build faster in parallel.
        all_blocks = [_ps_blocks(plan, task) for task in cluster.trainers]
        pool = concurrent.futures.ThreadPoolExecutor(plan.parties)
        running = [
            pool.submit(
                _run_rounds, plan, blocks | {THREAD_BARRIER: _repeat(shared.wait)}, shared.wait
            )
            for blocks in all_blocks
        ]
        concurrent.futures.wait(
            running, plan.limit_secs, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        failed = [party for party in running if party.done() and party.exception()]
        pool.shutdown(wait=False)
        return [party.result(timeout=1) for party in failed or running]


# The peers on the ps.


def _ps_blocks(plan: Plan, task: tfdist.Task) -> dict[str, Block]:
    cycles: dict[str, Cycle] = {
        peer: tfdist.Barrier(task, kind, kind=kind, timeout=_STALL_SECS).wait
        for peer, kind in ((QUEUE, "queue"), (COUNTER, "counter"))
    }
    cycles[LIMIT] = _no_op_cycle(task)
    if SYNC_QUEUES in plan.peers:
        cycles[SYNC_QUEUES] = _sync_queue_cycle(task)
    return {peer: _repeat(cycle) for peer, cycle in cycles.items()}


def _no_op_cycle(task: tfdist.Task) -> Cycle:
    """The least that a message to the ps and its answer cost."""
    import tensorflow as tf

    from tfdist.ps.session import PS_DEVICE

    with tf.Graph().as_default() as graph, tf.device(PS_DEVICE):
        operation = tf.no_op()
    return _callable(task, graph, operation)


def _sync_queue_cycle(task: tfdist.Task) -> Cycle:
    """The recipe of tf_cnn_benchmarks: put a token into every other queue, take as many.

    The tokens of two generations look alike: with three or more workers, the second token of a
    fast worker can replace the first of a slow one.
    """
    import tensorflow as tf

    from tfdist.ps.session import PS_DEVICE

    names = task.trainers
    with tf.Graph().as_default() as graph, tf.device(PS_DEVICE):
        queues = [
            tf.queue.FIFOQueue(len(names) * 2, [tf.bool], [[]], shared_name=f"sync/{name}")
            for name in names
        ]
        own = queues.pop(task.rank)
        sent = [queue.enqueue(False) for queue in queues]
        operation = tf.group(*sent, own.dequeue_many(len(queues)))
    return _callable(task, graph, operation)


def _callable(task: tfdist.Task, graph: Any, operation: Any) -> Cycle:
    """Runs an operation as the barrier does: straight on the ps, with nothing fetched."""
    from tfdist.ps.session import DirectSession

    session = DirectSession(task.cluster_spec["ps"][0], graph, timeout=_STALL_SECS).session
    cycle: Cycle = session.make_callable(operation)
    return cycle


# The peers that do not use the ps.


def _coordination_cycle(task: tfdist.Task) -> Cycle:
    """TensorFlow's coordination service on the chief; each cycle is a new barrier there."""
    import tensorflow as tf
    from tensorflow.python.eager import context as eager_context

    context = eager_context.context()
    leader = f"/job:{task.task_type}/replica:0/task:0"
    context.configure_coordination_service(
        "standalone", leader, cluster_register_timeout_in_ms=int(_STALL_SECS * 1000)
    )
    trainers = tf.train.ClusterSpec({task.task_type: task.cluster_spec[task.task_type]})
    context.enable_collective_ops(
        tf.train.ServerDef(
            cluster=trainers.as_cluster_def(),
            job_name=task.task_type,
            task_index=task.task_index,
            protocol="grpc",
            port=parse_address(task.address).port,
            # Without it the service is not enabled (TensorFlow 2.21).
            default_session_config=eager_context.get_config(),
        )
    )
    context.ensure_initialized()
    numbers = iter(range(2**62))
    return lambda: context.wait_at_barrier(f"cycle{next(numbers)}", int(_STALL_SECS * 1000))


def _gloo_blocks(plan: Plan, task: tfdist.Task) -> dict[str, Block]:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch  # type: ignore[import-not-found,unused-ignore]  # from the extra bench
    from torch import distributed

    torch.set_num_threads(1)
    timeout = timedelta(seconds=_STALL_SECS)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{plan.folder}/gloo",
        rank=task.rank,
        world_size=plan.parties,
        timeout=timeout,
    )
    return {
        GLOO: _repeat(distributed.barrier),
        MONITORED: _repeat(partial(distributed.monitored_barrier, timeout=timeout)),
    }


@contextmanager
def _process_barrier(plan: Plan) -> Iterator[None]:
    """More processes, because a `multiprocessing.Barrier` can only be inherited at their start.

    They idle until the chief asks for a block.
    """
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(plan.parties, timeout=_STALL_SECS)
    processes = [
        context.Process(
            target=_serve_process_barrier,
            args=(_socket(plan, rank), barrier, int(plan.limit_secs)),
            daemon=True,
        )
        for rank in range(plan.parties)
    ]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join(_STALL_SECS)


def _serve_process_barrier(path: str, barrier: Any, limit_secs: int) -> None:
    signal.alarm(limit_secs)  # ends the process in any case
    with Listener(path, "AF_UNIX") as listener, listener.accept() as chief:
        while True:
            try:
                cycles = chief.recv()
            except EOFError:
                return
            chief.send(_stamps(barrier.wait, cycles))


def _process_barrier_block(plan: Plan, task: tfdist.Task) -> Block:
    if not task.is_chief:
        return lambda cycles: []
    others = [_connected(_socket(plan, rank)) for rank in range(plan.parties)]

    def block(cycles: int) -> list[Stamps]:
        for other in others:
            other.send(cycles)
        deadline = Deadline(_STALL_SECS)
        if not all(other.poll(deadline.remaining) for other in others):
            raise TimeoutError(f"no block of {PROCESS_BARRIER} within {_STALL_SECS:.0f} s")
        return [other.recv() for other in others]

    return block


def _connected(path: str) -> Connection:
    deadline = Deadline(_STALL_SECS)
    while True:
        try:
            return Client(path, "AF_UNIX")
        except (FileNotFoundError, ConnectionRefusedError):
            if deadline.expired:
                raise
            time.sleep(0.02)


def _socket(plan: Plan, rank: int) -> str:
    return os.path.join(plan.folder, f"party{rank}")
