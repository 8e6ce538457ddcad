"""The barriers in `tfdist status`: how the ps is asked, its failures, and the table."""

import io
import os
import socket
import sys

import pytest
from rich.console import Console

from tfdist.diagnosis import barriers
from tfdist.diagnosis.barriers import Barriers, Question, ask, barrier_table
from tfdist.runs.barrier_notes import BarrierNote, BarrierReport, Place

NOTES = (BarrierNote("end", 1),)


@pytest.fixture
def silent():
    """A cluster whose ps is a socket that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield cluster_at(server.getsockname()[1])


def cluster_at(port):
    return {"ps": [f"127.0.0.1:{port}"], "worker": ["127.0.0.1:1"]}


def read(cluster, pid=None):
    return barriers.read(Question(pid or os.getpid(), cluster, NOTES), timeout=1.0)


def test_a_ps_that_does_not_answer_is_reported(silent):
    failure = f"ps:0 at {silent['ps'][0]} did not answer within 1 s"
    assert read(silent) == Barriers(failure=failure)


def test_a_ps_that_is_gone_is_reported():
    with socket.socket() as held:  # the port is taken, but no server listens
        held.bind(("127.0.0.1", 0))
        answer = read(cluster_at(held.getsockname()[1]))
    assert answer.reports == ()
    assert "is gone" in answer.failure


def test_a_process_that_is_gone_has_no_network_to_enter():
    answer = read(cluster_at(1), pid=2**22 + 1)  # more than the kernel's most
    assert "cannot enter the network of process 4194305" in answer.failure


def test_a_helper_process_that_takes_too_long_is_ended_and_reported(silent, monkeypatch):
    monkeypatch.setattr("tfdist.cluster.helper_process._ANSWER_SECS", 0.2)
    answer = ask(Question(os.getpid(), silent, NOTES))
    assert answer == Barriers(failure="the process that asks the ps did not end within 0.2 s")


def test_a_helper_process_that_fails_is_reported(silent, monkeypatch, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('it is broken')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    failure = "the process that asks the ps failed (exit code 1): ImportError: it is broken"
    assert ask(Question(os.getpid(), silent, NOTES)) == Barriers(failure=failure)


def shown(*reports, width=80):
    text = io.StringIO()
    Console(file=text, width=width).print(barrier_table(Barriers(reports)))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()[1:]]


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (BarrierReport("end", problem="others made it with 3"), "end others made it with 3"),
        (BarrierReport("end"), "end unknown to ps:0"),
        (
            BarrierReport("end", 3, (Place("worker:0", "missing", 7.0),)),
            "end 3 worker:0 7 s ago no trainer waits",
        ),
        (
            BarrierReport("end", 3, (Place("worker:0", "arrived", 7.0),), acts=True),
            "end 3 worker:0 7 s ago worker:0 runs the action",
        ),
        (BarrierReport("end", 3, broken="by me"), "end 3 broken: by me"),
        (
            BarrierReport("end", 1, (Place("a", "resigned", 1.0), Place("b", "missing", None))),
            "end 1 b never no trainer waits",
        ),
    ],
)
def test_each_state_of_a_barrier_is_described(report, line):
    assert shown(report) == [line]


def test_no_name_is_cropped():
    name = "a_name_that_is_longer_than_any_column_of_a_table_on_a_terminal_has_place_for"
    places = (Place("worker:1000", "missing", 12345.0), Place("worker:1001", "arrived", 12345.0))
    lines = shown(BarrierReport(name, 100000, places))
    assert "".join(line.split()[0] for line in lines) == name
    assert "worker:1000 12345 s ago" in lines[0]
    assert "worker:1001 12345 s ago" in lines[0]
