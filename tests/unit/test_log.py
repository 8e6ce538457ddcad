"""`tfdist run -v`: the levels at which the launcher and its tasks print the log."""

import logging
import os

import pytest

from tfdist.runs.log import LEVEL_VARIABLE, logged_at, show_log, show_log_of_task


@pytest.fixture(autouse=True)
def log(monkeypatch):
    monkeypatch.setenv(LEVEL_VARIABLE, "")  # so that it is restored: show_log sets it
    monkeypatch.delenv(LEVEL_VARIABLE)
    log = logging.getLogger("tfdist")
    before = log.level, log.handlers[:], log.propagate
    yield
    log.setLevel(before[0])
    log.handlers[:], log.propagate = before[1:]


def printed(capsys):
    """The lines on standard error after one record of each level."""
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("tfdist.cluster.local").log(level, logging.getLevelName(level).lower())
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("verbosity", [0, 1, 2, 3])
def test_each_v_shows_one_level_more_in_the_launcher_and_in_its_tasks(capsys, verbosity):
    environ = os.environ
    lines = ["tfdist: debug", "tfdist: info", "tfdist: warning"][max(0, 2 - verbosity) :]
    show_log(verbosity)
    assert printed(capsys) == lines
    assert (LEVEL_VARIABLE in environ) == (verbosity > 0)
    if verbosity > 0:
        show_log_of_task(environ, None)
        assert printed(capsys) == lines


@pytest.mark.parametrize("marked", [False, True])
def test_a_task_without_the_variable_keeps_the_scripts_own_logging(
    capsys, monkeypatch, tmp_path, marked
):
    show_log_of_task({}, str(tmp_path) if marked else None)
    monkeypatch.setattr(logging.root, "handlers", [])
    assert printed(capsys) == ["warning"]
    own = logging.StreamHandler()
    own.setFormatter(logging.Formatter("own: %(message)s"))
    logging.root.addHandler(own)
    assert printed(capsys) == ["own: warning"]


def test_a_mark_that_cannot_be_made_does_not_hurt_the_script(capsys, monkeypatch, tmp_path):
    show_log_of_task({}, str(tmp_path / "gone"))
    monkeypatch.setattr(logging.root, "handlers", [])
    assert printed(capsys) == ["warning"]


@pytest.mark.parametrize("environ", [{}, {LEVEL_VARIABLE: "INFO"}])
def test_a_task_marks_that_it_has_logged(capsys, tmp_path, environ):
    show_log_of_task(environ, str(tmp_path))
    assert logged_at(tmp_path) is None
    logging.getLogger("script").warning("not tfdist's")
    assert logged_at(tmp_path) is None
    logging.getLogger("tfdist.barrier").warning("still waiting")
    assert logged_at(tmp_path) is not None
    assert capsys.readouterr().err.count("still waiting") <= 1
