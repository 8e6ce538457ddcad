"""`tfdist export`: what it takes, prints and refuses."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

from tests.serving import export_graphs
from tfdist.cli import main
from tfdist.errors import HELD, USAGE


@pytest.fixture
def records(tmp_path):
    return export_graphs.write_records(tmp_path / "ratings.tfrecord")


@pytest.fixture
def meta(tmp_path, records):
    return export_graphs.train("iterator", records, tmp_path / "trained", dropout=True)


def test_it_prints_what_the_model_takes_and_returns(meta, records, tmp_path, capsys):
    model = str(tmp_path / "model")
    options = ["--output", "score", "--constant", "keep=1.0", "--records", records]
    assert main(["export", meta, model, *options]) == HELD
    assert capsys.readouterr().out.splitlines() == [
        f"{model}/1",
        "  input dense: tensor of float32, shape [?, 4]",
        "  input item: tensor of int64, shape [?]",
        "  input tags: SparseTensor of string, shape [?, ?]",
        "  input user: tensor of int64, shape [?]",
        "  outputs: score",
        "  signatures: serving_default, examples",
        "  checked at batches 1 and 3 with 3 real records",
    ]


def test_json_has_the_same(meta, tmp_path, capsys):
    model = str(tmp_path / "model")
    options = ["--output", "rating=score", "--constant", "keep=1.0", "--freeze", "--json"]
    assert main(["export", meta, model, *options]) == HELD
    about = json.loads(capsys.readouterr().out)
    assert about["path"] == f"{model}/1"
    assert about["inputs"]["user"] == {"dtype": "int64", "shape": [None], "sparse": False}
    assert about["outputs"] == ["rating"]
    assert about["num_records"] == 0
    assert about["frozen"] == f"{model}/1/frozen.pb"


def test_a_keras_file(tmp_path, capsys):
    layers = [tf.keras.Input([2], name="x"), tf.keras.layers.Dense(1)]
    path = str(tmp_path / "model.keras")
    tf.keras.Sequential(layers).save(path)
    assert main(["export", path, str(tmp_path / "model"), "--output", "y"]) == HELD
    assert "  input x: tensor of float32, shape [?, 2]" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--output", "scores"],
            "--output: got 'scores:0'; must be a tensor of the graph; did you",
        ),
        (
            ["--output", "score", "--constant", "keep"],
            "--constant: got 'keep'; must be TENSOR=VALUE",
        ),
        (["--output", "score", "--constant", "keep=on"], "--constant: got 'keep=on'; must have a"),
        (["--output", "score", "--input", "user"], "--input: got 'user'; must be NAME=TENSOR"),
        (
            ["--output", "score", "--constant", "keep=1", "--records", "none"],
            "--records: got ['none']; must be TFRecord files (none; No such file or directory)",
        ),
        (
            ["--output", "score"],
            "--input: got 'keep:0'; must have the batch as first dimension, or",
        ),
        ([], "--output: got None; must be a list of tensors"),
    ],
)
def test_wrong_options(options, message, meta, tmp_path, capsys):
    assert main(["export", meta, str(tmp_path / "model"), *options]) == USAGE
    assert message in capsys.readouterr().err
