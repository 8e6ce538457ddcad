"""Every function that the rules of a verdict know by name exists in what is installed."""

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

import tfdist
from tfdist.diagnosis.evidence import KNOWN, WAITING_MODULES

ROOTS = {
    "tfdist": Path(tfdist.__file__).parents[1],
    "tensorflow": Path(find_spec("tensorflow").origin).parents[1],
}
STANDARD_LIBRARY = Path(ast.__file__).parent


def source_of(file):
    """The file whose path ends with `file`."""
    if file == "<frozen importlib._bootstrap>":
        return STANDARD_LIBRARY / "importlib" / "_bootstrap.py"
    return ROOTS[file.partition("/")[0]] / file


def functions_in(path):
    """The names of all functions in a file: nested functions and methods too."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("file", "function"),
    [(known.file, function) for known in KNOWN for function in known.functions],
)
def test_a_known_function_exists(file, function):
    assert function in functions_in(source_of(file))


@pytest.mark.parametrize("file", WAITING_MODULES)
def test_a_module_in_which_python_waits_exists(file):
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    assert module.__file__.endswith(f"/{file}")


def test_a_function_that_does_not_exist_is_found(tmp_path):
    (tmp_path / "session.py").write_text("class Session:\n    def close(self): pass\n")
    assert functions_in(tmp_path / "session.py") == {"close"}
