"""Class tables over two ps: where their work is done, and the same numbers as in one process."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist.nn import (
    Adagrad,
    ClassTable,
    UnigramSampler,
    full_softmax,
    nce,
    sampled_softmax,
    sampled_softmax_on_ps,
    top_k,
)

v1 = tf.compat.v1

NUM_CLASSES, DIM, BATCH = 1001, 8, 16
COUNTS = np.arange(NUM_CLASSES)
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(BATCH, DIM)).astype(np.float32)
LABELS = RANDOM.integers(0, NUM_CLASSES, BATCH)
LOSSES = {
    "sampled_softmax": lambda table, sampler: sampled_softmax(
        table, INPUTS, LABELS, sampler.sample(32, LABELS, seed=1)
    ),
    "nce": lambda table, sampler: nce(
        table, INPUTS, LABELS, sampler.sample(32, LABELS, unique=False, seed=1)
    ),
    "sampled_softmax_on_ps": lambda table, sampler: sampled_softmax_on_ps(
        table, INPUTS, LABELS, sampler, 32, seed=1
    ),
    "full_softmax": lambda table, _: full_softmax(table, INPUTS, LABELS, chunk=300),
}
# What reads or changes rows; and what computes their logits, also fused with another operation.
ROWS = ("ResourceGather", "ResourceSparseApplyAdagradV2", "ResourceApplyAdagradV2")
LOGITS = "MatMul"


@pytest.fixture
def worker():
    with (
        tfdist.local_cluster(2, 1, backend="threads") as cluster,
        tfdist.worker_server(cluster.trainers[0]) as target,
    ):
        yield cluster.trainers[0], target


@pytest.mark.parametrize("name", LOSSES)
def test_rows_stay_on_their_ps(worker, name):
    task, target = worker
    with tfdist.train.replica_graph(task):
        table = ClassTable(NUM_CLASSES, DIM, num_shards=task.num_ps, name=f"rows/{name}")
        loss = LOSSES[name](table, UnigramSampler(table, COUNTS, name=f"unigram/{name}"))
        step = v1.train.get_or_create_global_step()
        update = tfdist.train.minimize_if(tf.constant(True), Adagrad(0.1), tf.reduce_mean(loss))
        with tfdist.train.session(task, target) as session:
            about = v1.RunMetadata()
            options = v1.RunOptions(output_partition_graphs=True)
            first, _ = session.run([loss, update], options=options, run_metadata=about)
            assert session.run(loss).mean() < first.mean()
            assert session.run(step) == 1
    rows, logits = set(), set()
    for graph in about.partition_graphs:
        for node in [*graph.node, *(n for f in graph.library.function for n in f.node_def)]:
            job = node.device.partition("/replica")[0]
            if node.op in ROWS:
                rows.add(job)
            elif LOGITS in node.op:
                logits.add(job)
    assert rows == {"/job:ps"}
    on_ps = name in ("sampled_softmax_on_ps", "full_softmax")
    assert logits == {"/job:ps" if on_ps else "/job:worker"}


def received_in_loops(task, target, fetches):
    """What a ps receives in a loop, so once for each iteration."""
    with tfdist.train.session(task, target) as session:
        about = v1.RunMetadata()
        options = v1.RunOptions(output_partition_graphs=True)
        session.run(fetches, options=options, run_metadata=about)
    nodes = [node for graph in about.partition_graphs for node in graph.node]
    received = [node for node in nodes if node.op == "_Recv" and "/job:ps" in node.device]
    assert received
    assert any(node.op == "NextIteration" and "/job:ps" in node.device for node in nodes)
    return [node.name for node in received if node.input]  # it waits for the loop's condition


@pytest.mark.parametrize("what", ["full_softmax", "its gradient", "top_k"])
def test_inputs_travel_once_not_for_each_chunk(worker, what):
    task, target = worker
    with tfdist.train.replica_graph(task):
        table = ClassTable(NUM_CLASSES, DIM, num_shards=task.num_ps)
        inputs = tf.random.normal([BATCH, DIM])  # a constant would be copied to the ps
        losses = full_softmax(table, inputs, LABELS, chunk=50)
        fetches = {
            "full_softmax": lambda: losses,
            "its gradient": lambda: tf.gradients(losses, inputs),
            "top_k": lambda: top_k(table, inputs, 5, chunk=50),
        }[what]()
        assert received_in_loops(task, target, fetches) == []


def test_what_a_loop_on_the_ps_computes_on_the_worker_travels_each_time(worker):
    task, target = worker
    with tfdist.train.replica_graph(task):

        def step(n):
            with tf.device(None), tf.device(task.device):
                more = tf.random.uniform([])
            with tf.device(None), tf.device("/job:ps/task:0"):
                return n + more

        with tf.device(None), tf.device("/job:ps/task:0"):
            sum_of_many = tf.while_loop(lambda n: n < 3.0, step, [tf.random.uniform([])])
        assert received_in_loops(task, target, sum_of_many)


def test_the_shards_of_a_job_give_the_numbers_of_one_process(worker):
    task, target = worker
    alone = ClassTable(NUM_CLASSES, DIM, seed=3)
    with tfdist.train.replica_graph(task):
        table = ClassTable(NUM_CLASSES, DIM, num_shards=task.num_ps, seed=3)
        fetches = full_softmax(table, INPUTS, LABELS), top_k(table, INPUTS, 5)[1]
        with tfdist.train.session(task, target) as session:
            losses, ids = session.run(fetches)
    np.testing.assert_allclose(losses, full_softmax(alone, INPUTS, LABELS), rtol=1e-6)
    np.testing.assert_array_equal(ids, top_k(alone, INPUTS, 5)[1])


COORDINATED = """
import tfdist
from tests.cluster import test_class_table_on_ps as jobs
with tfdist.local_cluster(2, 2, backend="threads", coordinator=True) as cluster:
    [found] = cluster.run(jobs.coordinate, timeout=80)
print(found)
"""


def coordinate(task):
    """Trains under a strategy; the places of the shards, and what fell."""
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(task.cluster_spec), rpc_layer="grpc"
    )
    # The table makes its own shards, whatever the partitioner.
    halves = tf.distribute.experimental.partitioners.FixedShardsPartitioner(2)
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=halves)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        table = ClassTable(NUM_CLASSES, DIM, seed=3)
        sampler, optimizer = UnigramSampler(table, COUNTS), Adagrad(0.5)
        optimizer.build([table])

    def step_of(name):
        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(LOSSES[name](table, sampler))
            variables = table.trainable_variables
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss

        return step

    def exact():
        return tf.reduce_mean(full_softmax(table, INPUTS, LABELS))

    found = [exact().numpy()]
    for name in LOSSES:
        step = step_of(name)
        for _ in range(5):
            coordinator.schedule(step)
        coordinator.join()
        found.append(exact().numpy())
    devices = [shard.bias.device for shard in table.shards]
    slots = [optimizer.slot(shard.weights, "accumulator").device for shard in table.shards]
    assert slots == devices, slots
    alone = tf.reduce_mean(full_softmax(ClassTable(NUM_CLASSES, DIM, seed=3), INPUTS, LABELS))
    assert abs(found[0] - alone) < 1e-5
    falls = [bool(after < before) for before, after in pairwise(found)]
    return [device.partition("/device")[0] for device in devices], falls


def test_a_coordinator_trains_a_table_on_two_ps():
    # In its own process, since a coordinator connects the process's eager context to its cluster.
    ended = subprocess.run(
        [sys.executable, "-c", COORDINATED], capture_output=True, text=True, timeout=90, check=False
    )
    devices = ["/job:ps/replica:0/task:0", "/job:ps/replica:0/task:1"]
    assert ended.stdout == f"{(devices, [True] * 4)}\n", ended.stderr[-3000:]
