"""Training graphs with each kind of reader, trained for some steps in this process."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

import tfdist

v1 = tf.compat.v1
USERS, ITEMS, DIM = 20, 30, 4
NUM_RECORDS, BATCH = 64, 8
SPEC = {
    "user": tf.io.FixedLenFeature([], tf.int64),
    "item": tf.io.FixedLenFeature([], tf.int64),
    "dense": tf.io.FixedLenFeature([DIM], tf.float32),
    "tags": tf.io.VarLenFeature(tf.string),
    "label": tf.io.FixedLenFeature([], tf.float32),
}
TAGS = ["red", "green", "blue"]


def records(*, with_label=True):
    return [_record(number, with_label) for number in range(NUM_RECORDS)]


def _record(number, with_label):
    features = {
        "user": tf.train.Feature(int64_list=tf.train.Int64List(value=[number % USERS])),
        "item": tf.train.Feature(int64_list=tf.train.Int64List(value=[number % ITEMS])),
        "dense": tf.train.Feature(float_list=tf.train.FloatList(value=np.arange(DIM) + number)),
        "tags": tf.train.Feature(bytes_list=tf.train.BytesList(value=_tags(number))),
    }
    if with_label:
        features["label"] = tf.train.Feature(float_list=tf.train.FloatList(value=[number % 2]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _tags(number):
    return [tag.encode() for tag in TAGS[: number % len(TAGS)]]


def write_records(path):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records():
            writer.write(record)
    return str(path)


def values(number):
    """The features of the first records."""
    rows = range(number)
    places = [(row, column) for row in rows for column in range(len(_tags(row)))]
    return {
        "user": np.array([row % USERS for row in rows], np.int64),
        "item": np.array([row % ITEMS for row in rows], np.int64),
        "dense": np.array([np.arange(DIM) + row for row in rows], np.float32),
        "tags": v1.SparseTensorValue(
            np.array(places, np.int64).reshape(-1, 2),
            np.array([tag for row in rows for tag in _tags(row)], object),
            np.array([number, max(len(_tags(row)) for row in rows)], np.int64),
        ),
    }


# --- readers: each returns the features of a batch, and what starts it


def _files(path):
    return v1.train.string_input_producer([path])


def queue(path):
    """A queue of serialized examples, then the parser."""
    _, serialized = v1.TFRecordReader().read(_files(path))
    batch = v1.train.batch([serialized], BATCH, allow_smaller_final_batch=True)
    return v1.io.parse_example(batch, SPEC)


def queue_of_features(path):
    """The parser, then a queue of features."""
    _, serialized = v1.TFRecordReader().read(_files(path))
    features = v1.io.parse_single_example(serialized, SPEC)
    return v1.train.shuffle_batch(features, BATCH, 20, 5, allow_smaller_final_batch=True)


def iterator(path):
    """tf.data with the parser after the batches."""
    dataset = tf.data.TFRecordDataset(path).repeat().batch(BATCH)
    return _next(dataset.map(lambda batch: v1.io.parse_example(batch, SPEC)).prefetch(1))


def iterator_of_examples(path):
    """tf.data with the parser before the batches."""
    dataset = tf.data.TFRecordDataset(path).map(lambda each: v1.io.parse_single_example(each, SPEC))
    return _next(dataset.shuffle(10).repeat().batch(BATCH))


def iterator_of_files(path):
    """tf.data that opens and parses each file within an interleave."""

    def read(file):
        return tf.data.TFRecordDataset(file).map(
            lambda each: v1.io.parse_single_example(each, SPEC)
        )

    files = tf.data.Dataset.from_tensor_slices([path])
    return _next(files.interleave(read, cycle_length=1).repeat().batch(BATCH))


def _next(dataset):
    return v1.data.make_initializable_iterator(dataset).get_next()


def iterator_of_full_batches(path):
    """tf.data whose batches have a fixed size, which TensorFlow makes a part of the graph."""
    dataset = tf.data.TFRecordDataset(path).repeat().batch(BATCH, drop_remainder=True)
    return _next(dataset.map(lambda batch: v1.io.parse_example(batch, SPEC)))


def queue_of_full_batches(path):
    """A queue of serialized examples, in batches of a fixed size."""
    _, serialized = v1.TFRecordReader().read(_files(path))
    return v1.io.parse_example(v1.train.batch([serialized], BATCH), SPEC)


def one_shot_iterator(path):
    """tf.data whose whole pipeline is a function of the graph."""
    dataset = tf.data.TFRecordDataset(path).repeat().batch(BATCH)
    dataset = dataset.map(lambda batch: v1.io.parse_example(batch, SPEC))
    return v1.data.make_one_shot_iterator(dataset).get_next()


def endless_batches(path):
    """The batches that tfdist makes, which cannot have a SparseTensor."""
    spec = {name: feature for name, feature in SPEC.items() if name != "tags"}
    dataset = tf.data.TFRecordDataset(path).map(lambda each: v1.io.parse_single_example(each, spec))
    features, _, _ = _next(tfdist.data.endless_batches(dataset, BATCH))
    return features


def placeholder(path):
    """No reader: serialized examples are fed."""
    del path
    return v1.io.parse_example(v1.placeholder(tf.string, [None], "serialized"), SPEC)


READERS = {
    each.__name__: each
    for each in (
        *(queue, queue_of_full_batches, queue_of_features, placeholder, endless_batches),
        *(iterator, iterator_of_examples, iterator_of_files, iterator_of_full_batches),
        one_shot_iterator,
    )
}


def _model(features, *, dropout, fixed_noise):
    """A score of each row; its variables are partitioned over two ps, and it has a lookup."""
    device = v1.train.replica_device_setter(ps_tasks=2, worker_device="/job:worker/task:0")
    partitioner = v1.fixed_size_partitioner(2)
    with v1.device(device):
        users = v1.get_variable("users", [USERS, DIM], partitioner=partitioner)
        items = v1.get_variable("items", [ITEMS, DIM], partitioner=partitioner, use_resource=True)
        words = v1.get_variable("words", [len(TAGS) + 1, DIM])
        weights = v1.get_variable("weights", [DIM, 1], use_resource=True)
        p = v1.nn.embedding_lookup(users, features["user"], partition_strategy="div")
        q = v1.nn.embedding_lookup(items, features["item"], partition_strategy="mod")
        hidden = p * q + features["dense"] / 100
        if "tags" in features:
            tags = features["tags"]
            ids = tf.strings.to_hash_bucket_fast(tags.values, len(TAGS) + 1)
            ids = tf.SparseTensor(tags.indices, ids, tags.dense_shape)
            hidden += v1.nn.safe_embedding_lookup_sparse(words, ids, combiner="sum")
        if dropout:
            hidden = v1.nn.dropout(hidden, keep_prob=v1.placeholder(tf.float32, [], "keep"))
        if fixed_noise:
            hidden += np.ones([BATCH, DIM])
        return tf.squeeze(tf.matmul(hidden, weights), 1, name="score")


def train(reader, path, folder, *, dropout=False, fixed_noise=False):
    """Trains for some steps; returns the path of the `.meta` file of the checkpoint."""
    with tf.Graph().as_default():
        v1.set_random_seed(1)
        features = READERS[reader](path)
        score = _model(features, dropout=dropout, fixed_noise=fixed_noise)
        loss = tf.reduce_mean(tf.square(score - features["label"]))
        v1.train.AdagradOptimizer(0.1).minimize(loss, v1.train.get_or_create_global_step())
        v1.train.Saver(sharded=True)
        training = v1.train.export_meta_graph()
    # In one process there is no ps; the devices stay in what is exported.
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.import_meta_graph(training, clear_devices=True)
        session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
        session.run(v1.tables_initializer())
        prefix = saver.save(session, str(folder / "model"), write_meta_graph=False)
    meta = f"{prefix}.meta"
    with open(meta, "wb") as file:
        file.write(training.SerializeToString())
    return meta


def expected(meta, number, *, with_tags=True):
    """What the training graph computes for the first records, fed as its reader would."""
    reader = v1.train.NewCheckpointReader(meta.removesuffix(".meta"))
    users, items, words, weights = map(reader.get_tensor, ("users", "items", "words", "weights"))
    features = values(number)
    hidden = users[features["user"]] * items[_mod(features["item"])] + features["dense"] / 100
    if with_tags:
        for row in range(number):
            for bucket in tf.strings.to_hash_bucket_fast(_tags(row), len(TAGS) + 1):
                hidden[row] += words[bucket]
    return (hidden @ weights)[:, 0]


def _mod(ids):
    """The rows of the whole table for ids that are spread by `mod`."""
    half = -(-ITEMS // 2)
    return ids // 2 + np.where(ids % 2, half, 0)
