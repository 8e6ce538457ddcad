"""Versions of packages, here invented; the doctor reads only their metadata."""

import ast

import pytest

from tfdist.doctor import environment

SOUND = {"tensorflow": "2.21.0", "keras": "3.15.1"}
FIT = """
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = tf.keras.Sequential()
    model.compile("sgd")
model.fit(data)
"""
LEGACY = {"TF_USE_LEGACY_KERAS": "1"}


def checks(findings):
    return [finding.check.removeprefix("versions.") for finding in findings]


@pytest.mark.parametrize(
    ("packages", "found"),
    [
        (SOUND, []),
        ({"tensorflow-cpu": "2.22.0rc1"}, []),
        ({"tf-nightly": "2.22.0.dev20260101"}, []),
        ({}, ["absent"]),
        ({"tensorflow": "2.20.1"}, ["tensorflow"]),
        ({"tensorflow": "1.15.5"}, ["tensorflow"]),
        ({"tensorflow": "3.0.0"}, ["tensorflow"]),
        ({"tensorflow": "2.21.0", "tensorflow-cpu": "2.21.0"}, ["two_tensorflows"]),
        (
            {"tensorflow": "2.21.0", "tensorflow-gpu": "2.11.0"},
            ["two_tensorflows", "tensorflow"],
        ),
    ],
)
def test_one_supported_tensorflow_must_be_installed(packages, found):
    assert checks(environment.tensorflow(packages.get)) == found


@pytest.mark.parametrize(
    ("packages", "environ", "found"),
    [
        ({}, {}, []),
        ({}, {"TF_USE_LEGACY_KERAS": "0"}, []),
        ({"tf_keras": "2.21.0"}, LEGACY, []),
        ({}, LEGACY, ["legacy_keras"]),
        ({"tf_keras": "2.20.1"}, LEGACY, ["legacy_keras"]),
    ],
)
def test_legacy_keras_needs_the_matching_tf_keras(packages, environ, found):
    assert checks(environment.legacy_keras((SOUND | packages).get, environ)) == found


def fit(code=FIT, packages=SOUND, environ=()):
    return environment.keras_fit(packages.get, dict(environ), ast.parse(code))


def test_fit_of_keras_3_under_a_strategy_for_many_machines_is_an_error():
    (finding,) = fit()
    assert (finding.check, finding.severity) == ("versions.keras_fit", "error")
    assert "line 7 calls fit under MultiWorkerMirroredStrategy" in finding.what


def test_keras_3_without_a_script_is_a_note():
    (finding,) = environment.keras_fit(SOUND.get, {}, None)
    assert (finding.check, finding.severity) == ("versions.keras_fit", "note")


@pytest.mark.parametrize(
    "code",
    [
        FIT.replace("MultiWorkerMirroredStrategy", "MirroredStrategy"),
        FIT.replace("model.fit(data)", "train(model)"),
        FIT.replace("tf.keras", "sklearn"),
        "import os\nos.environ['TF_USE_LEGACY_KERAS'] = '1'\n" + FIT,
        FIT.replace("tf.keras", "tf_keras"),
    ],
)
def test_other_scripts_work_with_keras_3(code):
    assert fit(code) == []


def test_fit_works_with_keras_2():
    assert fit(packages={"keras": "2.15.0"}) == []
    assert fit(packages=SOUND | {"tf_keras": "2.21.0"}, environ=LEGACY) == []
    assert checks(fit(environ=LEGACY)) == ["keras_fit"]  # without tf_keras
