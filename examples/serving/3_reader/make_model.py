"""Trains a graph that reads TFRecord files, and exports it without its reader for ratings.cc.

    python make_model.py
    cmake -S . -B build && cmake --build build
    build/ratings model/1

The tables are partitioned over two parameter servers. The exported model has each in one piece, and
takes the features by the names that they have in the records.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs

import numpy as np
import tensorflow as tf

import tfdist

v1 = tf.compat.v1
RECORDS = "ratings.tfrecord"
USERS, FILMS, TAG_BUCKETS, DIM = 20, 30, 50, 4
TAGS = ["funny", "short", "war"]
FEATURES = {
    "user": tf.io.FixedLenFeature([], tf.int64),
    "film": tf.io.FixedLenFeature([], tf.int64),
    "dense": tf.io.FixedLenFeature([2], tf.float32),  # two numbers about the viewing
    "tags": tf.io.VarLenFeature(tf.string),  # any number of texts: a SparseTensor
    "rating": tf.io.FixedLenFeature([], tf.float32),
}


def write_records():
    """A user likes the films of his parity, and what is funny."""
    random = np.random.default_rng(1)
    with tf.io.TFRecordWriter(RECORDS) as writer:
        for _ in range(2000):
            user, film = int(random.integers(USERS)), int(random.integers(FILMS))
            dense = random.random(2).astype(np.float32)
            tags = [tag for tag in TAGS if random.random() < 0.5]
            rating = 2 + (user % 2 == film % 2) + ("funny" in tags) + dense[0]
            record = tf.train.Example()
            feature = record.features.feature
            feature["user"].int64_list.value.append(user)
            feature["film"].int64_list.value.append(film)
            feature["dense"].float_list.value.extend(dense)
            feature["tags"].bytes_list.value.extend(tag.encode() for tag in tags)
            feature["rating"].float_list.value.append(rating)
            writer.write(record.SerializeToString())


def read():
    batches = tf.data.TFRecordDataset(RECORDS).shuffle(2000).repeat().batch(50)
    parsed = batches.map(lambda batch: tf.io.parse_example(batch, FEATURES))
    return v1.data.make_initializable_iterator(parsed)


def predict(features, num_ps):
    def table(name, rows):
        return v1.get_variable(name, [rows, DIM], partitioner=v1.fixed_size_partitioner(num_ps))

    def look_up(name, rows, ids):
        return v1.nn.embedding_lookup(table(name, rows), ids, partition_strategy="div")

    texts = features["tags"]
    buckets = tf.strings.to_hash_bucket_fast(texts.values, TAG_BUCKETS)
    tag_ids = tf.SparseTensor(texts.indices, buckets, texts.dense_shape)
    tags = v1.nn.safe_embedding_lookup_sparse(
        table("tags", TAG_BUCKETS), tag_ids, combiner="sum", partition_strategy="div"
    )
    pair = look_up("users", USERS, features["user"]) * look_up("films", FILMS, features["film"])
    weights = v1.get_variable("weights", [2])
    bias = v1.get_variable("bias", initializer=2.0)
    return bias + tf.reduce_sum(pair + tags, 1) + tf.reduce_sum(features["dense"] * weights, 1)


def train(task, target):
    with tfdist.train.replica_graph(task) as graph:
        iterator = read()
        features = iterator.get_next()
        rating = predict(features, task.num_ps)
        loss = tf.reduce_mean(tf.square(rating - features["rating"]))
        global_step = v1.train.get_or_create_global_step()
        step = v1.train.AdagradOptimizer(0.3).minimize(loss, global_step)
        saver = tfdist.train.Checkpointer("checkpoint")
        with tfdist.train.session(task, target) as session:
            session.run(iterator.initializer)
            for _ in range(400):
                _, error = session.run([step, loss])
            saver.save(session)
    print(f"mean squared error of the last batch: {error:.3f}")
    return graph, rating


def run(task):
    with tfdist.worker_server(task) as target:
        return train(task, target)


v1.logging.set_verbosity(v1.logging.ERROR)  # the optimizer warns of its age
write_records()
with tfdist.local_cluster(num_ps=2, num_workers=1, backend="threads") as cluster:
    ((graph, rating),) = cluster.run(run, timeout=60)
exported = tfdist.export.export_model(
    graph,
    "model",
    outputs={"rating": rating},
    checkpoint="checkpoint",
    records=RECORDS,
    ids={"user": USERS, "film": FILMS},
)
for name, spec in exported.inputs.items():
    print(f"input {name}: {type(spec).__name__}, {spec.dtype.name} {spec.shape}")
print(f"{exported.path}, checked with {exported.num_records} records")
