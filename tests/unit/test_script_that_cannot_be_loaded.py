"""A script that Python cannot load is described as `python SCRIPT` describes it."""

import subprocess
import sys
import zipfile

import pytest

from tfdist.cli import main
from tfdist.cluster.script import Script
from tfdist.errors import ConfigError
from tfdist.runs.outcome import Outcome
from tfdist.task import Task

TASK = Task("worker", 0, {"worker": ["localhost:1"]})


@pytest.fixture
def error_of(tmp_path, monkeypatch):
    """The error of a task that runs a script in an own folder."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def run(path, *, is_module=False):
        try:
            Script(str(path), [], is_module=is_module)(TASK)
        except Exception as error:
            return error.with_traceback(error.__traceback__.tb_next)  # without this call
        raise AssertionError("the script ran")

    return run


def details(error):
    """What the task prints, which has nothing of the modules that load a script."""
    text = Outcome.of_error(error).details
    assert "importlib" not in text
    assert "runpy" not in text
    assert "tfdist/" not in text
    return text


def shown_by_python(path):
    command = [sys.executable, path]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


SOURCES = {
    "syntax": b"x = 1\ndef f(:\n    pass\n",
    "indentation": b"if True:\nx = 1\n",
    "an end inside a bracket": b"print((1,\n",
    "return": b"return 3\n",
    "a future": b"from __future__ import yesterday\n",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_wrong_source_is_shown_as_python_shows_it(tmp_path, error_of, source):
    path = tmp_path / "job.py"
    path.write_bytes(source)
    assert details(error_of(path)) == shown_by_python(path)


UNREADABLE = {
    "a null byte": b"x = 1\nprint('\0')\n",
    "not UTF-8": b"# names\n\nname = 'caf\xe9'\n",
    "not UTF-8, before a null byte": b"name = '\xe9\0'\n",
    "UTF-16": "x = 1\n".encode("utf-16"),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 names other lines")
@pytest.mark.parametrize("source", UNREADABLE.values(), ids=UNREADABLE)
def test_wrong_bytes_are_shown_as_python_shows_them(tmp_path, error_of, source):
    test_wrong_source_is_shown_as_python_shows_it(tmp_path, error_of, source)


BYTES = {
    "tabs": (b"if 1:\n        x = 1\n\ty = 2\n", "TabError: "),
    "not the declared UTF-8": (b"# coding: utf-8\nname = 'caf\xe9'\n", "can't decode byte 0xe9"),
    "an unknown encoding": (b"# coding: klingon\n", "SyntaxError: unknown encoding: klingon"),
}


@pytest.mark.parametrize(("source", "said"), BYTES.values(), ids=BYTES)
def test_wrong_bytes_are_named(tmp_path, error_of, source, said):
    path = tmp_path / "job.py"
    path.write_bytes(source)
    text = details(error_of(path))
    assert said in text
    assert str(path) in text
    assert "Traceback" not in text


def test_a_truncated_compiled_script_shows_no_frames(tmp_path, error_of):
    (tmp_path / "job.py").write_text("x = 1\n")
    compile_it = [sys.executable, "-m", "compileall", "-b", "-q", tmp_path]
    subprocess.run(compile_it, check=True)
    path = tmp_path / "job.pyc"
    path.write_bytes(path.read_bytes()[:-5])
    assert details(error_of(path)).startswith("EOFError: ")


def test_an_archive_without_a_main_module_is_one_line(tmp_path, error_of):
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("job.py", "")
    [line] = details(error_of(tmp_path / "app.zip")).splitlines()
    assert "can't find '__main__' module in" in line


def test_an_error_in_an_archive_is_its_own(tmp_path, error_of):
    with zipfile.ZipFile(tmp_path / "app", "w") as archive:
        archive.writestr("__main__.py", "raise ValueError('no data')\n" + 99 * "#\n")
    assert details(error_of(tmp_path / "app")).endswith("\nValueError: no data\n")


def test_a_script_that_deletes_itself_and_fails_shows_its_own_error(tmp_path, error_of):
    (tmp_path / "job.py").write_text(
        "import os\nos.unlink(__file__)\nraise ValueError('no data')\n"
    )
    assert details(error_of(tmp_path / "job.py")).endswith("\nValueError: no data\n")


def test_a_package_without_a_main_module_is_wrong_input(tmp_path, error_of):
    for name in ("package", "namespace"):
        (tmp_path / name).mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    for name in ("package", "namespace"):
        error = error_of(name, is_module=True)
        assert isinstance(error, ConfigError)
        assert str(error) == f"-m: got '{name}'; must have a module __main__, as it is a package"


@pytest.mark.parametrize("name", ["broken", "outer.broken", "broken_outer.module"])
def test_a_module_that_cannot_be_loaded_shows_no_frames_above_it(tmp_path, error_of, name):
    for folder, start in (("outer", ""), ("broken_outer", "x = (\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(start)
        (tmp_path / folder / "broken.py").write_text("x = (\n")
    (tmp_path / "broken.py").write_text("x = (\n")
    lines = details(error_of(name, is_module=True)).splitlines()
    assert lines[0].startswith(f'  File "{tmp_path}/')
    assert lines[-1] == "SyntaxError: '(' was never closed"


def test_an_error_in_a_package_above_a_module_begins_there(tmp_path, error_of):
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing" / "__init__.py").write_text("raise ValueError('no data')\n")
    first, second, *_, last = details(error_of("failing.job", is_module=True)).splitlines()
    assert first == "Traceback (most recent call last):"
    assert second.startswith(f'  File "{tmp_path}/failing/__init__.py", line 1')
    assert last == "ValueError: no data"


@pytest.mark.parametrize("command", ["run", "node"])
def test_a_script_that_cannot_be_read_is_wrong_input(monkeypatch, capsys, command):
    monkeypatch.setenv("TF_CONFIG", TASK.to_env())
    path = "/proc/sys/net/ipv4/route/flush"  # can only be written, also by root
    assert main([command, path]) == 2
    assert capsys.readouterr().err == (
        f"tfdist: script: got '{path}'; cannot be read: Permission denied\n"
    )
