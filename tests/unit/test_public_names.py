"""The stubs of the packages are the whole public surface: in dir(), in docs/api.md, and there."""

import ast
import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    ".".join(stub.parent.relative_to(ROOT).parts) for stub in ROOT.glob("tfdist/**/__init__.pyi")
]


def listing_problems(module: ModuleType) -> list[str]:
    """Where `__all__` has a name twice, or differs from the public names that dir() shows."""
    stated, shown = list(module.__all__), {n for n in dir(module) if not n.startswith("_")}
    found = [f"{name!r} is listed twice" for name in sorted(set(stated)) if stated.count(name) > 1]
    found += [f"{name!r} is shown by dir() alone" for name in sorted(shown - set(stated))]
    return found + [f"{name!r} is hidden from dir()" for name in sorted(set(stated) - shown)]


def documented(page: str) -> dict[str, list[str]]:
    """The names that docs/api.md lists, by package."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        if heading := re.fullmatch(r"## `(\S+)`", line):
            names = found[heading[1]] = []
        elif row := re.match(r"\| (`.+?) \| .+ \|$", line):
            names += re.findall(r"`(\w+)`", row[1])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_list_is_what_dir_shows(package):
    module = importlib.import_module(package)
    assert module.__all__
    assert listing_problems(module) == []


def test_the_names_of_testing_need_no_tensorflow():
    testing = importlib.import_module("tfdist.testing")
    assert all(getattr(testing, name) for name in testing.__all__)


def test_the_api_page_lists_each_public_name_once():
    listed = documented((ROOT / "docs/api.md").read_text("utf-8"))
    public = {package: importlib.import_module(package).__all__ for package in PACKAGES}
    assert {package: sorted(names) for package, names in listed.items()} == {
        package: sorted(names) for package, names in public.items()
    }


def texts(file: Path) -> Iterator[str]:
    """The strings of a module."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@functools.cache
def public_classes() -> dict[str, set[str]]:
    """The methods and attributes of each public class, read without an import."""
    found = {}
    for package in PACKAGES:
        folder = ROOT / package.replace(".", "/")
        stub = (folder / "__init__.pyi").read_text("utf-8")
        for module, name in re.findall(r"from \.([\w.]+) import (\w+)", stub):
            tree = ast.parse((folder / f"{module.replace('.', '/')}.py").read_text("utf-8"))
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    parts = (getattr(part, "name", None) for part in node.body)
                    found[name] = {part for part in parts if part is not None}
    return found


def unknown_names(text: str) -> list[str]:
    """The names like tfdist.train.session and Split.release in a text that do not exist."""
    classes = public_classes()
    found = []
    for name in re.findall(r"(?<![/\w.<])tfdist\.\w+(?:\.\w+)*", text):
        package, _, last = name.rpartition(".")
        if last not in getattr(importlib.import_module(package), "__all__", ()):
            found += [] if importlib.util.find_spec(name) else [name]
    dotted = re.findall(r"(?<![/\w.])([A-Z]\w+)\.([a-z]\w*)", text)
    return found + [f"{c}.{m}" for c, m in dotted if c in classes and m not in classes[c]]


@pytest.mark.parametrize("folder", ["diagnosis", "doctor"])
def test_advice_and_findings_name_only_what_exists(folder):
    files = (ROOT / "tfdist" / folder).rglob("*.py")
    assert [name for file in files for text in texts(file) for name in unknown_names(text)] == []


def test_a_name_that_does_not_exist_is_found():
    text = "SplitQueue.release() or Split.release(), tfdist.Epoch or tfdist.train.Epoch"
    assert unknown_names(text) == ["tfdist.Epoch", "SplitQueue.release"]


@pytest.mark.parametrize(
    ("package", "name", "meant"),
    [
        ("tfdist", "Epoch", "tfdist.train.Epoch"),
        ("tfdist.train", "Ledger", "tfdist.data.Ledger"),
        ("tfdist.data", "Barrier", "tfdist.Barrier"),
        ("tfdist", "Barier", "Barrier"),
    ],
)
def test_a_missing_name_says_where_it_is(package, name, meant):
    with pytest.raises(AttributeError) as caught:
        getattr(importlib.import_module(package), name)
    assert str(caught.value) == (
        f"module {package!r} has no attribute {name!r}; did you mean {meant}?"
    )


def test_a_wrong_list_is_found():
    module = ModuleType("wrong")
    module.extra, module.a, module.b = 1, 1, 1
    module.__all__ = ["b", "a", "a", "gone"]
    assert listing_problems(module) == [
        "'a' is listed twice",
        "'extra' is shown by dir() alone",
        "'gone' is hidden from dir()",
    ]


def test_the_rows_of_the_api_page_are_read():
    page = "## `tfdist`\n| name | what |\n|---|---|\n| `A`, `b` | a `C` |\n## `tfdist.data`\n"
    page += "| `D` | d |"
    assert documented(page) == {"tfdist": ["A", "b"], "tfdist.data": ["D"]}
