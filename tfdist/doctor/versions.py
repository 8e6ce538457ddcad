"""Packages that do not work together. Nothing is imported: the installed metadata tells."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping

from tfdist.doctor.finding import Finding
from tfdist.doctor.script import calls, names

Installed = Callable[[str], str | None]

_TENSORFLOWS = ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly")
_OLDEST, _TOO_NEW = (2, 21), (3, 0)  # what setup.py asks for
_STRATEGIES = {
    "ParameterServerStrategy",
    "ParameterServerStrategyV2",
    "MultiWorkerMirroredStrategy",
    "CollectiveAllReduceStrategy",
}
_LEGACY = "TF_USE_LEGACY_KERAS"
_TRUE = ("true", "True", "1")  # tensorflow/__init__.py, 2.21


def tensorflow(installed: Installed) -> list[Finding]:
    """No TensorFlow, two of them, or one that tfdist was not made for."""
    found = {name: version for name in _TENSORFLOWS if (version := installed(name))}
    listed = " and ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return [
            Finding(
                "versions.absent",
                "error",
                "TensorFlow is not installed here",
                "No task of the job can run.",
                "pip install 'tensorflow>=2.21,<3'; and look which Python runs this command.",
            )
        ]
    findings = []
    if len(found) > 1:
        findings.append(
            Finding(
                "versions.two_tensorflows",
                "warning",
                f"{listed} are installed",
                "Both own the folder tensorflow/: which files are there depends on the order in "
                "which they came, and they may be mixed.",
                f"pip uninstall {' '.join(found)}, then install the one you mean.",
            )
        )
    if any(not _OLDEST <= _numbers(version) < _TOO_NEW for version in found.values()):
        findings.append(
            Finding(
                "versions.tensorflow",
                "error",
                f"{listed} is installed",
                "tfdist needs TensorFlow 2.21 or a later 2.x, and so do the facts it relies on.",
                "pip install 'tensorflow>=2.21,<3'",
            )
        )
    return findings


def legacy_keras(installed: Installed, environ: Mapping[str, str]) -> list[Finding]:
    """`TF_USE_LEGACY_KERAS` without the Keras 2 that it asks for, or with another one."""
    if environ.get(_LEGACY) not in _TRUE:
        return []
    tf_keras, own = installed("tf_keras"), installed("tensorflow")
    if tf_keras is None:
        what = f"{_LEGACY} is set, and tf_keras is not installed"
        why = "tf.keras raises ImportError as soon as it is used."
    elif own is not None and _numbers(tf_keras) != _numbers(own):
        what = f"tf_keras {tf_keras} with tensorflow {own}"
        why = "A tf_keras is made for the TensorFlow of its own number only."
    else:
        return []
    pin = ".".join(map(str, _numbers(own or "2.21")))
    fix = f"pip install 'tf_keras=={pin}.*'"
    return [Finding("versions.legacy_keras", "error", what, why, fix)]


def keras_fit(
    installed: Installed, environ: Mapping[str, str], tree: ast.Module | None
) -> list[Finding]:
    """Keras 3, whose `Model.fit` fails under a strategy of more than one machine.

    Args:
        tree: of the script; without one it is a note.
    """
    keras = installed("keras")
    legacy = environ.get(_LEGACY) in _TRUE and installed("tf_keras") is not None
    if keras is None or _numbers(keras) < (3, 0) or legacy:
        return []
    severity, what = "note", f"keras {keras} is installed"
    if tree is not None:
        used = names(tree)
        fits = [call.lineno for call in calls(tree, {"fit"})]
        # A script that names the variable sets it, or reads it and knows.
        if not fits or not _STRATEGIES & used or "keras" not in used or _LEGACY in used:
            return []
        strategy = min(_STRATEGIES & used)
        severity, what = "error", f"line {fits[0]} calls fit under {strategy}, with keras {keras}"
    return [
        Finding(
            "versions.keras_fit",
            severity,
            what,
            "Model.fit of Keras 3 raises ValueError under ParameterServerStrategy and "
            "MultiWorkerMirroredStrategy, though compile succeeds.",
            f"pip install tf_keras and export {_LEGACY}=1 for every task; or write the training "
            "loop yourself: Keras layers and optimizers work.",
        )
    ]


def _numbers(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
