"""The layers of the package, checked against the imports of every module.

A folder of tfdist/ is a room, and a room has a floor. A module imports from its own room and from
rooms on lower floors, never from a room on its own floor or above. Within a room no imports form a
circle.
"""

from __future__ import annotations

import ast
import importlib
import re
import statistics
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfdist

ROOT = Path(__file__).parents[2]

FLOORS = {
    # 1: what everything needs
    "errors": 1,
    "lazy": 1,
    "task": 1,
    "deadline": 1,
    # 2 and 3: the input, what a run leaves on disk, talking to one ps
    "data": 2,
    "runs": 3,
    "ps": 3,
    # 4: one mechanism each
    "barrier": 4,
    "splits": 4,
    "nn": 4,
    "cluster": 4,
    # 5 to 7: what puts them together
    "train": 5,
    "diagnosis": 5,
    "doctor": 5,
    "export": 5,
    "planner": 5,
    "deploy": 5,
    "serving": 6,
    "repro": 6,
    "testing": 6,
    "cli": 7,
    "__main__": 8,
}
# train/ receives its cluster as values, so that a loop runs on any cluster.
APART = {("train", "cluster")}
# Within the floor of the foundations these may import one another.
FOUNDATIONS = 1
# Packages with public names, besides tfdist itself.
PUBLIC_PACKAGES = {"barrier", "data", "doctor", "export", "nn", "serving", "splits", "testing"}
PUBLIC_PACKAGES |= {"planner", "train"}
# Decisions: no TensorFlow, no input or output; numpy is the only library.
PURE = {"deadline", "data.ledger"}
PURE_NAME = "rules"

# Small modules with one importer, each of which is a concept of its own.
SMALL_LINES = 60
CONCEPTS = {
    "__main__": "python -m tfdist",
    "cluster.preload": "the fork server imports it by its name",
    "export.frozen": "a GraphDef in place of a SavedModel",
    "planner.scaling": "how large a model to train, for Chinchilla's law",
    "testing.compose.nodes": "which back end runs the services of compose files",
}

MOST_MODULES = 140
# Rooms for what comes after the training, and the commands of that name: each has its own limit.
LATER = {"export": 20, "serving": 10, "serve": 2, "nn": 15, "planner": 50, "cli.plan": 2}
LATER |= {"cli.plan_text": 2}
MOST_LINES = 500
MEDIAN_LINES = (100, 200)


def room(module: str) -> str:
    """The room of `module` (a name below tfdist)."""
    return module.partition(".")[0]


def belongs(module: str, name: str) -> bool:
    """Whether a module has that name, is in the room of that name, or is its command."""
    return name in (module, room(module), module.rpartition(".")[2])


def is_pure(module: str) -> bool:
    """Whether `module` holds decisions alone."""
    return module in PURE or module.rpartition(".")[2] == PURE_NAME


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
    package = parts if path.stem == "__init__" else parts[:-1]
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
    mine = room(module)
    outside, _, below = target.partition(".")
    if outside != "tfdist":
        pure = outside in sys.stdlib_module_names or outside == "numpy"
        return "a decision imports no library but numpy" if is_pure(module) and not pure else None
    if below.startswith("__") and below.endswith("__") and below != "__main__":
        return None  # tfdist.__version__ and its like
    theirs = room(below)
    if theirs not in FLOORS:
        return "inside the package, import a name from the module that defines it"
    if theirs == mine:
        return None
    if (mine, theirs) in APART:
        return f"{mine}/ receives values instead"
    if FLOORS[theirs] > FLOORS[mine]:
        return f"floor {FLOORS[mine]} may not import from floor {FLOORS[theirs]}"
    if FLOORS[theirs] == FLOORS[mine] != FOUNDATIONS:
        return f"rooms of floor {FLOORS[mine]} do not import one another"
    return None


def strings(path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each module that a string names as a whole: an import in disguise."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r"tfdist\.([\w.]+)", node.value)
            if found and found[1] in known:
                yield node.lineno, node.value


def layer_problems(root: Path) -> list[str]:
    """Each import in root/tfdist that breaks a rule, and each module without a floor."""
    found = []
    modules = sources(root)
    for module, path in modules.items():
        where = path.relative_to(root)
        if not module:
            continue
        if room(module) not in FLOORS:
            found.append(f"{where}: {room(module)} has no floor")
            continue
        named = [*imports(path, module, set(modules)), *strings(path, set(modules))]
        for line, target in named:
            if rule := broken_rule(module, target):
                found.append(f"{where}:{line}: imports {target}: {rule}")
    return found


def circles(root: Path) -> list[str]:
    """Each module that imports itself by way of others."""
    modules = sources(root)
    targets = {
        module: {
            name.removeprefix("tfdist.")
            for _, name in imports(path, module, set(modules))
            if name.removeprefix("tfdist.") in modules
        }
        for module, path in modules.items()
        if module
    }

    def reaches(module: str, goal: str, seen: set[str]) -> bool:
        for target in targets.get(module, set()) - seen:
            seen.add(target)
            if target == goal or reaches(target, goal, seen):
                return True
        return False

    return sorted(module for module in targets if reaches(module, module, set()))


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
        allowed = {*sys.stdlib_module_names, "tfdist.lazy"}
        found += [n for n in names if not {n, n.partition(".")[0]} & allowed]
    return found


def names_used(node: ast.AST) -> list[str]:
    """The names below tfdist that one node of an example imports or reads: train.session."""
    if isinstance(node, ast.Import):
        used = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        used = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        used = [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
    return [name.removeprefix("tfdist.") for name in used if re.fullmatch(r"tfdist(\.\w+)+", name)]


def public_names() -> set[str]:
    """The public names below tfdist, those of its packages with the package: train.session."""
    modules = {name: importlib.import_module(f"tfdist.{name}") for name in PUBLIC_PACKAGES}
    return {
        *tfdist.__all__,
        *(f"{p}.{name}" for p, module in modules.items() for name in module.__all__),
    }


def public_part(name: str) -> str:
    """`name` without the attributes of a public object: Task of Task.from_env."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in PUBLIC_PACKAGES else 1])


def shown_code(root: Path) -> Iterator[tuple[Path, str]]:
    """The code that a user may copy: the examples, and the python blocks of the pages."""
    for path in sorted((root / "examples").rglob("*.py")):
        yield path, path.read_text("utf-8")
    for page in [*root.glob("README.md"), *sorted((root / "docs").rglob("*.md"))]:
        for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            yield page, textwrap.dedent(code)


def private_uses(root: Path, public: set[str]) -> list[str]:
    """Each use of tfdist in shown code beyond the public names."""
    return [
        f"{path.relative_to(root)}: tfdist.{name} is not public"
        for path, code in shown_code(root)
        for node in ast.walk(ast.parse(code))
        for name in names_used(node)
        if public_part(name) not in public
    ]


def sizes(root: Path) -> dict[str, int]:
    """The lines of each module."""
    return {name: len(path.read_text("utf-8").splitlines()) for name, path in sources(root).items()}


def small_with_one_importer(root: Path) -> set[str]:
    """Small modules that at most one other module, or the stub of a package, imports."""
    modules = sources(root)
    files = list(modules.items())
    files += [(name, path.with_suffix(".pyi")) for name, path in files if path.stem == "__init__"]
    importers: dict[str, set[Path]] = {module: set() for module in modules}
    for module, path in files:
        for _, name in imports(path, module, set(modules)) if path.exists() else ():
            target = name.removeprefix("tfdist").removeprefix(".")
            if target in importers and target != module:
                importers[target].add(path)
    lines = sizes(root)
    return {
        module
        for module, path in modules.items()
        if path.stem != "__init__" and lines[module] < SMALL_LINES and len(importers[module]) < 2
    }


def test_every_import_goes_down():
    assert sources(ROOT), "no package to walk"
    assert layer_problems(ROOT) == []


def test_no_imports_form_a_circle():
    assert circles(ROOT) == []


def test_every_room_with_a_floor_exists():
    assert {room(module) for module in sources(ROOT) if module} == set(FLOORS)


def test_modules_are_few_and_neither_tiny_nor_huge():
    lines = sizes(ROOT)
    own = [name for name in lines if not any(belongs(name, later) for later in LATER)]
    assert len(own) < MOST_MODULES
    for later, most in LATER.items():
        assert sum(belongs(name, later) for name in lines) < most
    assert [name for name, count in lines.items() if count > MOST_LINES] == []
    low, high = MEDIAN_LINES
    assert low <= statistics.median(lines.values()) <= high


def test_a_small_module_with_one_importer_is_a_concept_of_its_own():
    assert small_with_one_importer(ROOT) == set(CONCEPTS)


def test_a_small_module_with_one_importer_is_found(tmp_path):
    plant(tmp_path, "cluster/__init__.py", "")
    plant(tmp_path, "cluster/a.py", "from . import server\nfrom tfdist.errors import E")
    plant(tmp_path, "cluster/b.py", "from tfdist.cluster.a import f\nfrom tfdist.errors import E")
    plant(tmp_path, "cluster/__init__.pyi", "from .b import g as g")
    plant(tmp_path, "cluster/c.py", "from tfdist.cluster.b import g\nfrom .a import f")
    assert small_with_one_importer(tmp_path) == {"barrier.rules", "cluster.c", "cluster.server"}


def test_the_package_itself_is_lazy():
    assert eager_imports(ROOT) == []


def test_examples_and_pages_use_public_names_only():
    assert private_uses(ROOT, public_names()) == []


def plant(root: Path, name: str, code: str) -> Path:
    """A tree of a few sound modules, and one file more."""
    for file in ("errors.py", "barrier/rules.py", "cluster/server.py", name):
        path = (root if file.startswith("examples/") else root / "tfdist") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code if file == name else "")
    return root


@pytest.mark.parametrize(
    ("name", "code", "rule"),
    [
        ("barrier/rules.py", "import tensorflow as tf", "no library but numpy"),
        ("data/ledger.py", "def f():\n    import rich", "no library but numpy"),
        ("task.py", "from tfdist.barrier.rules import Arrivals", "may not import from floor 4"),
        ("task.py", "from . import barrier", "may not import from floor 4"),
        ("cluster/a.py", "import tfdist.barrier.rules", "do not import one another"),
        ("barrier/a.py", "from ..cluster import server", "do not import one another"),
        ("cluster/a.py", 'PROGRAM = "tfdist.barrier.rules"', "do not import one another"),
        ("train/graph.py", "from tfdist.cluster import server", "receives values"),
        ("repro/lab.py", "from tfdist import testing", "do not import one another"),
        ("testing/a.py", "from tfdist.cli import main", "may not import from floor 7"),
        ("train/graph.py", "from tfdist import Barrier", "from the module that defines it"),
        ("helpers.py", "", "has no floor"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, name, code, rule):
    (problem,) = layer_problems(plant(tmp_path, name, code))
    assert rule in problem


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("barrier/rules.py", "import dataclasses\nimport numpy\nfrom tfdist.errors import X"),
        ("cluster/a.py", "import tensorflow\nfrom . import server\nfrom tfdist.task import T"),
        ("train/graph.py", "from tfdist.barrier.rules import A\nfrom tfdist import errors"),
        ("repro/lab.py", "from ..cluster import server\nfrom tfdist.train.graph import loop"),
        ("testing/a.py", "from tfdist.cluster import server\nfrom tfdist import __version__"),
        ("__main__.py", "from tfdist.cli import main"),
    ],
)
def test_a_right_import_is_not(tmp_path, name, code):
    assert layer_problems(plant(tmp_path, name, code)) == []


def test_a_circle_is_found(tmp_path):
    plant(tmp_path, "cluster/a.py", "from tfdist.cluster import b")
    plant(tmp_path, "cluster/b.py", "def f():\n    from tfdist.cluster.a import x")
    assert circles(tmp_path) == ["cluster.a", "cluster.b"]


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
def test_an_eager_import_is_found(tmp_path, code, found):
    assert sorted(eager_imports(plant(tmp_path, "__init__.py", code))) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import tfdist\ntfdist.Barrier()\nfrom tfdist import Barrier", 0),
        ("import tfdist\ntfdist._lazy", 1),
        ("from tfdist import _lazy", 1),
        ("from tfdist.barrier import Barrier", 1),
        ("import tfdist.cluster", 1),
        ("import tfdist\ntfdist.train.session()\ntfdist.Barrier.wait", 0),
        ("import tfdist\ntfdist.train.graph.session()", 2),
        ("from tfdist.train import session, graph", 1),
    ],
)
def test_a_private_name_in_an_example_is_found(tmp_path, code, found):
    root = plant(tmp_path, "examples/x.py", code)
    assert len(private_uses(root, {"Barrier", "train", "train.session"})) == found
