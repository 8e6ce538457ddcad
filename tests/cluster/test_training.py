"""The same training on both back ends: no example is lost, and no checkpoint is early."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import tfdist

BATCH_SIZE = 4
NUM_EPOCHS = 2
# Trainer 1 ends first; the last batch of trainer 2 is padded.
SHARDS = ((0, 20), (20, 24), (24, 37))
NUM_EXAMPLES = SHARDS[-1][1]
STEPS_PER_EPOCH = 5 + 1 + 4


@pytest.mark.rotates(1)
@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_every_example_counts_once_and_the_checkpoint_holds_all_work(
    make_cluster, tmp_path, backend
):
    cluster = make_cluster(2, len(SHARDS), backend=backend)
    job = functools.partial(train, directory=str(tmp_path))
    results = cluster.run(job, timeout=60)
    epochs = results[0]
    assert [ranges for ranges, _ in results[1:]] == [(), ()]
    (audits, saved), _ = epochs[0], epochs[1]
    for audit in audits:
        assert (audit.expected, audit.exactly_once) == (NUM_EXAMPLES, True)
    assert [each.global_step for each in saved] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    # Each update adds its weighted sum of examples: the table holds the work of all trainers.
    reader = tf.train.load_checkpoint(saved[-1].path)
    assert reader.get_tensor("total") == NUM_EPOCHS * sum(range(NUM_EXAMPLES))
    assert reader.get_tensor("reads").tolist() == [NUM_EPOCHS] * NUM_EXAMPLES


@pytest.mark.parametrize("restores", [True, False])
def test_a_restarted_chief_saves_on_although_it_restores_nothing(make_cluster, tmp_path, restores):
    save = functools.partial(save_as_restarted_chief, folder=tmp_path, restores=restores)
    assert make_cluster(1, 1).run(save, timeout=60) == [[1, 2, 3]]
    with pytest.raises(tfdist.ConfigError, match="must be restored before the first save"):
        make_cluster(1, 1).run(functools.partial(save, restores=False), timeout=60)


def save_as_restarted_chief(task, folder, restores):
    """Trains a step in each of three sessions, as three processes would; returns the steps."""
    saved = []
    with tfdist.worker_server(task) as target:
        for _ in range(3):
            with tfdist.train.replica_graph(task):
                step = tf.compat.v1.train.get_or_create_global_step().assign_add(1)
                saver = tfdist.train.Checkpointer(folder)
                restore = saver.restore if restores else None
                with tfdist.train.session(task, target, restore=restore) as session:
                    session.run(step)
                    saved.append(saver.save(session).global_step)
        # The chief continues only what it knows.
        (folder / "checkpoint").write_text('model_checkpoint_path: "model-1"\n')
        with tfdist.train.replica_graph(task):
            tf.compat.v1.train.get_or_create_global_step()
            saver = tfdist.train.Checkpointer(folder)
            refused = pytest.raises(tfdist.ConfigError, match="no other job saves")
            with tfdist.train.session(task, target) as session, refused:
                saver.save(session)
    return saved


def train(task, directory):
    """Counts its examples on the ps; returns what the chief found, and nothing elsewhere."""
    with tfdist.worker_server(task) as target, tfdist.train.replica_graph(task):
        step, fetches, rewind = build(task)
        saver = tfdist.train.Checkpointer(directory)
        audits, saved = [], []
        with tfdist.train.session(task, target) as session:

            def save(result):
                saved.append(saver.save(session))
                audits.append(result.audit)

            epoch = tfdist.train.Epoch(
                task, "train", expected=NUM_EXAMPLES, action=save, timeout=30
            )
            while epoch.number <= NUM_EPOCHS:
                session.run(rewind)
                while True:
                    _, example, weight, has_value = session.run([step, *fetches])
                    if not has_value:
                        break
                    epoch.read(example[weight > 0])
                epoch.finish().check()
            return ((audits, saved) if task.is_chief else ()), None


def build(task):
    global_step = tf.compat.v1.train.get_or_create_global_step()
    total = tf.compat.v1.get_variable(
        "total", [], tf.int64, initializer=tf.zeros_initializer(), use_resource=True
    )
    reads = tf.compat.v1.get_variable(
        "reads",
        [NUM_EXAMPLES],
        tf.int32,
        initializer=tf.zeros_initializer(),
        partitioner=tf.compat.v1.fixed_size_partitioner(task.num_ps),
        use_resource=True,
    )
    dataset = tf.data.Dataset.range(*SHARDS[task.rank])
    iterator = tf.compat.v1.data.make_initializable_iterator(
        tfdist.data.endless_batches(dataset, BATCH_SIZE)
    )
    example, weight, has_value = iterator.get_next()
    counts = tf.cast(weight, tf.int32)
    halves = np.array_split(np.arange(NUM_EXAMPLES), task.num_ps)

    def apply():
        updates = [total.assign_add(tf.reduce_sum(example * tf.cast(weight, tf.int64)))]
        for part, half in zip(reads, halves, strict=True):
            inside = (example >= half[0]) & (example <= half[-1])
            rows = tf.where(inside, example - half[0], tf.zeros_like(example))
            delta = tf.where(inside, counts, tf.zeros_like(counts))
            updates.append(part.scatter_add(tf.IndexedSlices(delta, rows)))
        return [*updates, global_step.assign_add(1)]

    step = tfdist.train.apply_if(has_value, apply)
    return step, [example, weight, has_value], iterator.initializer
