"""Walks the imports of the tree and holds them to the layer table of CONTRIBUTING.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfdist

ROOT = Path(__file__).parents[2]

# Every module below tfdist/ has a layer here; a folder's holds for all that is in it.
LAYERS = {
    # 0: decisions, pure
    "arrivals": 0,
    "barrier_notes": 0,
    "deadline": 0,
    "errors": 0,
    "evidence": 0,
    "judge": 0,
    "ledger": 0,
    "mistaken": 0,
    "planner": 0,
    "progress": 0,
    "refusal": 0,
    "split_plan": 0,
    "splits": 0,
    "stall": 0,
    "task": 0,
    "task_waits": 0,
    "verdict": 0,
    # 1: one mechanism each, on TensorFlow
    "barrier": 1,
    "cluster": 1,
    "eos": 1,
    "export": 1,
    "files": 1,
    "planner.calibrate": 1,
    "planner.keras_count": 1,
    "serving": 1,
    "softmax": 1,
    "sparse_optimizers": 1,
    "split_queue": 1,
    # 2 to 4: what puts them together
    "train": 2,
    "repro": 3,
    "cli": 4,
    "testing": 4,
    "__main__": 5,
}
# train/ is handed its cluster as values, so that a loop runs on any cluster.
APART = {("train", "cluster")}
# Modules that are used as such, beside the names of the package itself.
PUBLIC_MODULES = {"train"}
# What layer 0 may import besides the standard library and layer 0.
PURE_EXTRAS = {"ledger": {"numpy"}, "planner": {"numpy"}}


def layer(module: str) -> int | None:
    """The layer of `module` (a name below tfdist): its own entry, else its nearest folder's."""
    while module and module not in LAYERS:
        module = module.rpartition(".")[0]
    return LAYERS.get(module)


def sources(root: Path) -> dict[str, Path]:
    """Each module of the package by its name below tfdist; the package itself is ""."""
    package = root / "tfdist"
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path, module: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of each import in a file, wherever in the file it stands."""
    parts = ["tfdist", *filter(None, module.split("."))]
    package = parts if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{source}.{alias.name}"
                # `from tfdist import task` names a module, `from tfdist.task import Task` does not.
                is_module = source == "tfdist" or name.removeprefix("tfdist.") in known
                yield node.lineno, name if is_module else source


def broken_rule(module: str, target: str) -> str | None:
    """Why `module` may not import the absolute name `target`, or None if it may."""
    mine, top = layer(module), module.partition(".")[0]
    outside, _, below = target.partition(".")
    if outside != "tfdist":
        pure = outside in sys.stdlib_module_names or outside in PURE_EXTRAS.get(top, ())
        return None if mine or pure else "layer 0 is pure"
    if below.startswith("__") and below.endswith("__") and below != "__main__":
        return None  # tfdist.__version__ and its like
    theirs, their_top = layer(below), below.partition(".")[0]
    if theirs is None:
        return "inside the package, import a name from the module that defines it"
    if theirs > mine:
        return f"layer {mine} may not look up to layer {theirs}"
    if (top, their_top) in APART:
        return f"{top}/ takes values instead"
    if theirs == mine > 0 and top != their_top:
        return f"modules of layer {mine} stand side by side"
    return None


def layer_problems(root: Path) -> list[str]:
    """Each import in root/tfdist that breaks a rule, and each module without a layer."""
    found = []
    modules = sources(root)
    for module, path in modules.items():
        where = path.relative_to(root)
        if not module:
            continue
        if layer(module) is None:
            found.append(f"{where}: not in the table of layers")
            continue
        for line, target in imports(path, module, set(modules)):
            if rule := broken_rule(module, target):
                found.append(f"{where}:{line}: imports {target}: {rule}")
    return found


def import_time(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run on import: none of a function, none for type checkers only."""
    for node in nodes:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from import_time(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (
                getattr(node, field, []) for field in ("body", "orelse", "finalbody", "handlers")
            )
            for block in inner:
                yield from import_time(block)


def eager_imports(root: Path) -> list[str]:
    """What `import tfdist` itself imports beyond the standard library: it has to be lazy."""
    found = []
    for node in import_time(ast.parse((root / "tfdist/__init__.py").read_text("utf-8")).body):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        found += [n for n in names if n.partition(".")[0] not in sys.stdlib_module_names]
    return found


def names_used(node: ast.AST) -> list[str]:
    """The names below tfdist that one node of an example imports or reads."""
    if isinstance(node, ast.Import):
        imported = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == "tfdist":
        imported = [f"tfdist.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        imported = [node.module or ""]
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        imported = [f"{node.value.id}.{node.attr}"]
    else:
        imported = []
    return [name.removeprefix("tfdist.") for name in imported if name.startswith("tfdist.")]


def example_problems(root: Path, public: set[str]) -> list[str]:
    """Each use of tfdist in root/examples beyond the public names: a user may not copy it."""
    return [
        f"{path.relative_to(root)}:{node.lineno}: tfdist.{name} is not public"
        for path in sorted((root / "examples").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in names_used(node)
        if name not in public
    ]


def test_every_import_keeps_to_its_layer():
    assert sources(ROOT), "no package to walk"
    assert layer_problems(ROOT) == []


def test_the_package_itself_is_lazy():
    assert eager_imports(ROOT) == []


def test_examples_use_public_names_only():
    assert example_problems(ROOT, {*tfdist.__all__, *PUBLIC_MODULES}) == []


def plant(root: Path, name: str, code: str) -> Path:
    """A tree of two sound modules, a folder, and one file more."""
    for file in ("errors.py", "barrier.py", "cluster/__init__.py", "cluster/server.py", name):
        path = (root if file.startswith("examples/") else root / "tfdist") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code if file == name else "")
    return root


@pytest.mark.parametrize(
    ("name", "code", "rule"),
    [
        ("verdict.py", "import tensorflow as tf", "layer 0 is pure"),
        ("verdict.py", "def f():\n    import numpy", "layer 0 is pure"),
        ("planner/ps.py", "import rich", "layer 0 is pure"),
        ("task.py", "from tfdist.barrier import QueueBarrier", "may not look up"),
        ("task.py", "from . import barrier", "may not look up"),
        ("planner/ps.py", "from tfdist.planner.keras_count import f", "may not look up"),
        ("eos.py", "import tfdist.barrier", "side by side"),
        ("cluster/doctor.py", "from ..barrier import QueueBarrier", "side by side"),
        ("train/graph.py", "from tfdist.cluster import server", "takes values"),
        ("repro/harness.py", "from tfdist import testing", "may not look up"),
        ("cli/run.py", "from tfdist.testing import poll_until", "side by side"),
        ("testing.py", "from tfdist.cli import main", "side by side"),
        ("train/graph.py", "from tfdist import QueueBarrier", "from the module that defines it"),
        ("helpers.py", "", "not in the table"),
    ],
)
def test_a_wrong_import_is_told(tmp_path, name, code, rule):
    (problem,) = layer_problems(plant(tmp_path, name, code))
    assert rule in problem


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("verdict.py", "import dataclasses\nfrom tfdist import errors\nfrom .errors import X"),
        ("planner/ps.py", "import numpy\nfrom tfdist.planner.shapes import S"),
        ("planner/keras_count.py", "import tensorflow\nfrom .ps import f"),
        (
            "cluster/doctor.py",
            "import tensorflow\nfrom . import server\nfrom tfdist.cluster.server import S",
        ),
        (
            "train/graph.py",
            "from tfdist.barrier import B\nfrom . import hooks\nfrom tfdist import errors",
        ),
        ("repro/harness.py", "from ..cluster import server\nfrom tfdist.train.graph import loop"),
        ("testing.py", "from tfdist.repro import harness\nfrom tfdist import __version__"),
        ("__main__.py", "from tfdist.cli import main"),
    ],
)
def test_a_right_import_is_not(tmp_path, name, code):
    assert layer_problems(plant(tmp_path, name, code)) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import tensorflow as tf", ["tensorflow"]),
        (
            "try:\n    from .barrier import B\nexcept ImportError:\n    import numpy",
            [".barrier", "numpy"],
        ),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tfdist.barrier import B",
            [],
        ),
        ("def __getattr__(name):\n    import tensorflow", []),
    ],
)
def test_an_eager_import_is_told(tmp_path, code, found):
    assert sorted(eager_imports(plant(tmp_path, "__init__.py", code))) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import tfdist\ntfdist.Barrier()\nfrom tfdist import Barrier", 0),
        ("import tfdist\ntfdist._lazy", 1),
        ("from tfdist import _lazy", 1),
        ("from tfdist.barrier import Barrier", 1),
        ("import tfdist.cluster", 1),
    ],
)
def test_a_private_name_in_an_example_is_told(tmp_path, code, found):
    root = plant(tmp_path, "examples/x.py", code)
    assert len(example_problems(root, {"Barrier"})) == found
