"""A process that is not a trainer reads a barrier without changing it."""

import threading

import pytest

import tfdist
from tfdist.barrier.connection import read_barrier
from tfdist.runs.barrier_notes import BarrierNote, Place
from tfdist.testing import poll_until

SECONDS = 20


@pytest.fixture
def cluster(make_cluster):
    return make_cluster(1, 3)


def read(cluster, name, parties=3):
    task = cluster.trainers[0]
    return read_barrier(
        task.cluster_spec["ps"][0], task.trainers, BarrierNote(name, parties), timeout=SECONDS
    )


def places(report):
    return {place.trainer: place.state for place in report.places}


def test_it_shows_arrived_missing_and_resigned_trainers(cluster):
    barriers = [tfdist.Barrier(task, "end", timeout=SECONDS) for task in cluster.trainers]
    before = read(cluster, "end")
    never = tuple(Place(f"worker:{rank}", "missing", None) for rank in range(3))
    assert (before.generation, before.places) == (1, never)
    waiting = threading.Thread(target=barriers[1].wait)
    waiting.start()
    poll_until(lambda: barriers[0].n_waiting == 1, "worker:1 waits")
    barriers[2].resign()
    report = read(cluster, "end")
    assert read(cluster, "end").generation == report.generation == 1  # reading changed nothing
    assert places(report) == {"worker:0": "missing", "worker:1": "arrived", "worker:2": "resigned"}
    assert 0 <= report.places[1].seconds < SECONDS
    assert (report.acts, report.broken, report.problem) == (False, None, None)
    barriers[0].wait()
    waiting.join()
    after = read(cluster, "end")
    assert (after.generation, places(after)["worker:1"]) == (2, "missing")
    assert after.places[1].seconds is not None  # it arrived in the generation before


def test_it_shows_a_running_action_and_why_a_barrier_is_broken(cluster):
    begun, go = threading.Event(), threading.Event()

    def action():
        begun.set()
        go.wait(SECONDS)

    barriers = [
        tfdist.Barrier(task, "act", parties=2, action=action, timeout=SECONDS)
        for task in cluster.trainers[:2]
    ]
    threads = [threading.Thread(target=barrier.wait) for barrier in barriers]
    for thread in threads:
        thread.start()
    assert begun.wait(SECONDS)
    report = read(cluster, "act", parties=2)
    assert (report.acts, list(places(report).values())) == (True, ["arrived"] * 2)
    go.set()
    for thread in threads:
        thread.join()
    barriers[1].abort()
    report = read(cluster, "act", parties=2)
    assert (report.acts, report.broken) == (False, "worker:1 called abort()")


def test_reading_does_not_make_a_barrier(cluster):
    for _ in range(2):
        report = read(cluster, "none")
        assert (report.generation, report.places, report.problem) == (None, (), None)


def test_a_note_with_other_parties_is_a_problem(cluster):
    tfdist.Barrier(cluster.trainers[0], "end")
    report = read(cluster, "end", parties=2)
    assert "other trainers made barrier 'end' with 3 parties" in report.problem
