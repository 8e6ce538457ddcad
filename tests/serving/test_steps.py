"""The steps of examples/serving, as a C++ developer takes them: Python, CMake, the program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[2]
STEPS = ROOT / "examples/serving"
SECS = 240.0  # the deadline of the test is shorter when it runs alone
TAG_BUCKETS = 50


def run(folder, *command, code=0):
    """What the command prints on standard output, and on standard error if it has to fail."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECS, check=False
    )
    assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def step(tmp_path):
    """Copies the folder of a step, makes its model, and builds its program."""

    def prepare(name):
        folder = tmp_path / "copied"
        shutil.copytree(STEPS / name, folder)
        made = run(folder, sys.executable, "make_model.py")
        run(folder, "cmake", "-S", ".", "-B", "build", f"-DPython3_EXECUTABLE={sys.executable}")
        run(folder, "cmake", "--build", "build")
        return folder, made

    return prepare


def commands(name):
    """The commands that the first comment of make_model.py gives."""
    text = (STEPS / name / "make_model.py").read_text("utf-8").split('"""')[1]
    return [line.split() for line in re.findall(r"^    (.+)$", text, re.MULTILINE)]


def test_a_product(step):
    folder, made = step("1_product")
    assert made == "model/1: a, b -> c\n"
    assert run(folder, *commands("1_product")[-1]).splitlines() == [
        "input a: float32 [?]",
        "input b: float32 [?]",
        "3 x 4 = 12",
    ]
    error = run(folder, "build/product", "model", "3", "4", code=1)
    assert error.splitlines()[-1].startswith("product: Could not find SavedModel")


def test_three_forms_of_a_model_agree(step):
    folder, _ = step("2_parameters")
    *answers, last = run(folder, *commands("2_parameters")[-1]).splitlines()
    assert last == "the three agree"
    checkpoint = tf.train.load_checkpoint(str(folder / "checkpoint/model"))
    weights, bias = checkpoint.get_tensor("weights"), checkpoint.get_tensor("bias")
    y = np.array([[1, 1], [10, 0]]) @ weights + bias
    np.testing.assert_allclose(y, [2, 31], atol=0.001)
    numbers = f"y(1, 1) = {y[0]:.3f}   y(10, 0) = {y[1]:.3f}"
    assert [re.split(r":\s+", line) for line in answers] == [
        ["SavedModel", numbers],
        ["frozen graph", numbers],
        ["graph and checkpoint", numbers],
    ]
    error = run(folder, "build/regression", *["model/1/frozen.pb"] * 4, code=1)
    assert error.splitlines()[-1].startswith("regression: ")


def rating(checkpoint, user, film, dense, tags):
    """What the graph of the third step computes, from the values of its variables."""
    hidden = checkpoint.get_tensor("users")[user] * checkpoint.get_tensor("films")[film]
    for bucket in tf.strings.to_hash_bucket_fast(tags, TAG_BUCKETS).numpy() if tags else ():
        hidden = hidden + checkpoint.get_tensor("tags")[bucket]
    weights, bias = checkpoint.get_tensor("weights"), checkpoint.get_tensor("bias")
    return bias + hidden.sum() + np.dot(dense, weights)


def test_a_training_graph_with_a_reader(step):
    folder, made = step("3_reader")
    assert made.splitlines()[1:] == [
        "input dense: TensorSpec, float32 (None, 2)",
        "input film: TensorSpec, int64 (None,)",
        "input tags: SparseTensorSpec, string (None, None)",
        "input user: TensorSpec, int64 (None,)",
        "model/1, checked with 3 records",
    ]
    (folder / "ratings.tfrecord").unlink()  # the model does not read it
    *answers, refused = run(folder, *commands("3_reader")[-1]).splitlines()
    checkpoint = tf.train.load_checkpoint(str(folder / "checkpoint"))
    viewings = [
        ((4, 8, [0.5, 0.1], ["funny", "short"]), 4.5),
        ((4, 9, [0.5, 0.1], []), 2.5),
        ((7, 9, [0.0, 0.9], ["war"]), 3.0),
    ]
    for line, (viewing, true) in zip(answers, viewings, strict=True):
        about, number = line.split(": rating ")
        assert about == "user {}, film {}, {} tags".format(*viewing[:2], len(viewing[3]))
        assert float(number) == pytest.approx(rating(checkpoint, *viewing), abs=2e-4)
        assert float(number) == pytest.approx(true, abs=0.3)
    rule = "user: ids must be at least 0 and less than 20"
    assert refused == f"wrong request: assertion failed: [{rule}] [20]"
