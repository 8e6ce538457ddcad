"""What a trained model becomes: the same answers, without its reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import export_graphs
from tfdist.errors import ConfigError
from tfdist.export import export_model, verify
from tfdist.export.verify import served

v1 = tf.compat.v1


@pytest.fixture
def records(tmp_path):
    return export_graphs.write_records(tmp_path / "ratings.tfrecord")


@pytest.fixture
def train(tmp_path, records):
    """Trains a model with that reader; returns the path of its MetaGraphDef."""

    def start(reader, **options):
        return export_graphs.train(reader, records, tmp_path / "trained", **options)

    return start


@pytest.mark.parametrize("reader", export_graphs.READERS)
def test_a_reader_is_cut_away(reader, train, records, tmp_path):
    meta = train(reader)
    exported = export_model(meta, tmp_path / "model", outputs=["score"], records=records)
    assert exported.path == str(tmp_path / "model" / "1")
    with_tags = reader != "endless_batches"  # these have no SparseTensor
    assert set(exported.inputs) == {"user", "item", "dense"} | ({"tags"} if with_tags else set())
    assert exported.signatures == ("serving_default", "examples")
    assert exported.num_records == 3
    with served(exported.path) as model:
        ops = {op.type for op in model.graph.get_operations()}
        assert not ops & {"IteratorV2", "QueueDequeueManyV2", "TFRecordReaderV2", "ApplyAdagrad"}
        examples = np.array(export_graphs.records(with_label=False)[:2], object)
        [by_examples] = model.run({"examples": examples}, "examples").values()
        values = {
            name: value
            for name, value in export_graphs.values(2).items()
            if name in exported.inputs
        }
        [by_values] = model.run(values).values()
    np.testing.assert_allclose(by_examples, by_values, rtol=1e-6)
    expected = export_graphs.expected(meta, 2, with_tags=with_tags)
    np.testing.assert_allclose(by_values, expected, rtol=1e-5)


def test_the_golden_file_repeats_requests_and_answers(train, records, tmp_path):
    exported = export_model(
        train("iterator"), tmp_path / "model", outputs=["score"], records=records
    )
    with open(f"{exported.path}/golden.json") as file:
        by_features, by_examples = json.load(file)["requests"]
    assert by_features["signature_name"] == "serving_default"
    assert by_features["inputs"]["user"] == export_graphs.values(3)["user"].tolist()
    assert by_features["outputs"] == by_examples["outputs"]
    assert list(by_examples["inputs"]) == ["examples"]


def test_a_batch_size_that_stays_in_the_graph_is_named(train, tmp_path):
    meta = train("iterator_of_full_batches", fixed_noise=True)
    with pytest.raises(ConfigError, match=r"batch size: got 1; the output score has 8 rows"):
        export_model(meta, tmp_path / "model", outputs=["score"])
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("batch", [1, 2])
def test_a_training_with_small_batches_is_compared_by_its_rows(batch):
    class Served:
        def run(self, values):
            return {"y": np.where(values["x"] < wrong_from, 2.0, 3.0) * values["x"]}

    def compare():
        verify.compare(
            Served(),
            lambda values: {"y": 2.0 * values["x"]},
            lambda number: {"x": 1.0 + np.arange(number)},
            batch,
        )

    wrong_from = batch + 1
    compare()
    wrong_from = batch
    with pytest.raises(ConfigError, match="outputs: got 'y'; is not what was trained"):
        compare()


def test_a_placeholder_can_be_a_constant(train, records, tmp_path):
    meta = train("iterator", dropout=True)
    exported = export_model(
        meta, tmp_path / "model", outputs=["score"], constants={"keep": 1.0}, records=records
    )
    assert "keep" not in exported.inputs


@pytest.mark.parametrize("user", [-1, export_graphs.USERS])
def test_an_id_outside_of_a_partitioned_table_is_an_error(user, train, records, tmp_path):
    exported = export_model(
        train("queue"),
        tmp_path / "model",
        outputs=["score"],
        records=records,
        ids={"user": export_graphs.USERS},
    )
    values = export_graphs.values(2)
    values["user"][1] = user
    with (
        served(exported.path) as model,
        pytest.raises(tf.errors.InvalidArgumentError, match="user: ids must be at least 0 and"),
    ):
        model.run(values)


def test_a_frozen_graph_computes_the_same(train, records, tmp_path):
    meta = train("queue")
    exported = export_model(
        meta, tmp_path / "model", outputs=["score"], records=records, freeze=True
    )
    graph_def = tf.compat.v1.GraphDef.FromString(Path(exported.frozen).read_bytes())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        values = export_graphs.values(2)
        tags = values.pop("tags")
        feed = {f"{name}:0": value for name, value in values.items()}
        feed.update({f"tags/{part}:0": value for part, value in tags._asdict().items()})
        score = session.run("score:0", feed)
    np.testing.assert_allclose(score, export_graphs.expected(meta, 2), rtol=1e-5)
    again = export_model(exported.frozen, tmp_path / "again", outputs=["score"])
    assert set(again.inputs) == {"user", "item", "dense", "tags"}


def _saved(folder, build):
    """Saves the graph that `build` makes, its variables initialized; returns its `.meta` file."""
    with tf.Graph().as_default(), v1.Session() as session:
        build()
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        saver = v1.train.Saver() if v1.global_variables() else None
        if saver is not None:
            return f"{saver.save(session, str(folder / 'model'))}.meta"
        path = str(folder / "model.meta")
        v1.train.export_meta_graph(path)
        return path


def _vocabulary(path):
    path.write_text("red\ngreen\nblue\n")

    def build():
        words = v1.placeholder(tf.string, [None], "word")
        table = v1.get_variable("table", [4, 2], use_resource=False)
        numbers = tf.lookup.StaticVocabularyTable(
            tf.lookup.TextFileInitializer(
                str(path), tf.string, 0, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            ),
            num_oov_buckets=1,
        )
        tf.identity(tf.gather(table, numbers.lookup(words)), "rows")
        tf.identity(numbers.lookup(words), "numbers")

    return build


def test_records_are_read_within_the_graph_of_the_caller_too(train, records, tmp_path):
    meta = train("iterator")
    with tf.Graph().as_default() as graph:
        graph.finalize()
        exported = export_model(meta, tmp_path / "model", outputs=["score"], records=records)
    assert exported.num_records == 3


def test_a_vocabulary_goes_with_the_model(tmp_path):
    path = tmp_path / "colors.txt"
    meta = _saved(tmp_path, _vocabulary(path))
    exported = export_model(meta, tmp_path / "model", outputs=["rows", "numbers"])
    path.unlink()
    assert Path(exported.path, "assets", "colors.txt").is_file()
    with served(exported.path) as model:
        numbers = model.run({"word": np.array([b"blue", b"?"], object)})["numbers"]
    assert numbers.tolist() == [2, 3]
    with pytest.raises(ConfigError, match=r"vocabulary: .*colors.txt"):
        export_model(meta, tmp_path / "model", outputs=["rows"])
    assert [each.name for each in (tmp_path / "model").iterdir()] == ["1"]


def test_a_lookup_table_cannot_be_frozen(tmp_path):
    meta = _saved(tmp_path, _vocabulary(tmp_path / "colors.txt"))
    with pytest.raises(ConfigError, match=r"freeze: .*lookup table"):
        export_model(meta, tmp_path / "model", outputs=["rows"], freeze=True)


def _sum():
    x, y = (v1.placeholder(tf.float32, [None], name) for name in "xy")
    tf.add(
        x,
        y * v1.get_variable("w", [], initializer=v1.ones_initializer(), use_resource=False),
        name="sum",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["summ"]}, r"outputs: got 'summ:0'; .*did you mean sum:0\?"),
        ({"outputs": "sum"}, "outputs: got 'sum'; must be a list of tensors"),
        ({}, "outputs: got None"),
        ({"outputs": ["sum"], "inputs": {"z": "q"}}, "inputs: got 'q:0'; must be a tensor"),
        ({"outputs": ["sum"], "constants": {"y": "text"}}, "constants: got .* must be"),
        ({"outputs": ["sum"], "checkpoint": "none"}, "checkpoint: got 'none'; must be"),
        ({"outputs": ["sum"], "records": "none"}, "records: .* must be TFRecord files"),
        ({"outputs": ["sum"], "ids": {"x": 3}}, "ids: got 'x'; must be an input with whole"),
        ({"outputs": ["sum"], "version": -1}, "version: got -1; must be"),
        ({"outputs": ["w/read"]}, "outputs: got .* must depend on an input"),
        ({"outputs": {"sum": ("sum", "sum")}}, "outputs: .* must be one tensor"),
        ({"outputs": ["sum:x"]}, "outputs: got 'sum:x'; must be a tensor of the graph, or its"),
        ({"outputs": ["sum:1"]}, "outputs: got 'sum:1'; must be a tensor of the graph"),
        ({"outputs": {"sum": 3}}, "outputs: got 3; must be a tensor of the graph, or its name"),
    ],
)
def test_wrong_parameters(options, message, tmp_path):
    meta = _saved(tmp_path, _sum)
    with pytest.raises(ConfigError, match=message):
        export_model(meta, tmp_path / "model", **options)


def test_a_folder_that_cannot_be_written(tmp_path):
    meta = _saved(tmp_path, _sum)
    with pytest.raises(ConfigError, match=r"directory: got .*; must be a folder that can be"):
        export_model(meta, Path(meta, "model"), outputs=["sum"])


def test_a_version_is_not_replaced(tmp_path):
    meta = _saved(tmp_path, _sum)
    assert export_model(meta, tmp_path / "model", outputs=["sum"]).path.endswith("/1")
    assert export_model(meta, tmp_path / "model", outputs=["sum"], version=9).path.endswith("/9")
    assert export_model(meta, tmp_path / "model", outputs=["sum"]).path.endswith("/10")
    with pytest.raises(ConfigError, match="version: got 9"):
        export_model(meta, tmp_path / "model", outputs=["sum"], version=9)


def test_a_checkpoint_without_a_variable_is_named(tmp_path):
    meta = _saved(tmp_path, _sum)
    (tmp_path / "other").mkdir()

    def other():
        v1.get_variable("v", [2])

    checkpoint = _saved(tmp_path / "other", other).removesuffix(".meta")
    with pytest.raises(ConfigError, match=r"checkpoint: .* must have the variable w"):
        export_model(meta, tmp_path / "model", outputs=["sum"], checkpoint=checkpoint)


def test_a_folder_or_a_graph_can_be_the_source(tmp_path):
    meta = _saved(tmp_path, _sum)
    by_folder = export_model(tmp_path, tmp_path / "model", outputs=["sum"])
    with tf.Graph().as_default() as graph:
        _sum()
    output = {"total": graph.get_tensor_by_name("sum:0")}
    by_graph = export_model(
        graph, tmp_path / "model", outputs=output, checkpoint=meta.removesuffix(".meta")
    )
    for exported, name in ((by_folder, "sum"), (by_graph, "total")):
        with served(exported.path) as model:
            assert model.run({"x": [1.0], "y": [2.0]})[name].tolist() == [3]
