"""The table of the tasks while a job starts: which are ready, and the state of the others."""

import io

import pytest
from rich.console import Console

from tfdist.cli.progress import StartUp
from tfdist.runs.folder import TaskRecord
from tfdist.task import Task

CLUSTER = {"ps": ["127.0.0.1:11"], "worker": ["127.0.0.1:21", "127.0.0.1:22"]}
TASKS = [
    Task("ps", 0, CLUSTER),
    Task("worker", 0, CLUSTER),
    Task("worker", 1, CLUSTER),
    Task("evaluator", 0, CLUSTER),
]


class World:
    """A clock, and the listening ports; `asked` lists the ports that were probed."""

    def __init__(self, tasks=TASKS):
        self.now, self.listening, self.asked, self.states = 100.0, set(), [], {}
        self.start_up = StartUp(
            tasks, clock=lambda: self.now, listens=self._listens, state=self._state
        )

    def _state(self, record):
        return self.states.get(record.name, "runs")

    def _listens(self, host, port, timeout):
        assert (host, timeout > 0) == ("127.0.0.1", True)
        self.asked.append(port)
        return port in self.listening

    def look(self, seconds, *records, noted=()):
        """Looks `seconds` after the start; returns the table as lines of words, or None."""
        self.now = 100.0 + seconds
        table = self.start_up.look(records, noted)
        if table is None:
            return None
        text = io.StringIO()
        Console(file=text, width=100).print(table)
        return [" ".join(line.split()) for line in text.getvalue().splitlines() if line.strip()]


@pytest.fixture
def world():
    return World()


def record_of(name, ended=None):
    return TaskRecord(name, 1, 7, 0.0, ended, None if ended is None else 0)


ALL = [record_of(task.name) for task in TASKS]


def test_a_table_shows_the_state_of_each_task(world):
    world.listening = {11}
    assert world.look(2.5, record_of("ps:0")) is None
    title, header, _, *rows = world.look(10, record_of("ps:0"), record_of("worker:0"))
    assert title == "tfdist: after 10 s, 3 of 4 tasks have no server"
    assert header == "task address pid state"
    assert rows == [
        "ps:0 127.0.0.1:11 7 ready after 2.5 s",
        "worker:0 127.0.0.1:21 7 running; no server listens at its address",
        "worker:1 127.0.0.1:22 not started",
        "evaluator:0 not started",
    ]


def test_the_first_table_comes_after_10_s_and_the_next_at_growing_intervals(world):
    moments = [moment / 10 for moment in range(1000)]
    assert [m for m in moments if world.look(m, *ALL)] == [10.0, 20.0, 40.0, 80.0]


def test_a_ready_task_is_not_probed_again(world):
    world.listening = {11}
    world.look(1, *ALL)
    world.listening = set()
    world.look(2, *ALL)
    assert world.asked == [11, 21, 22, 21, 22]
    assert world.start_up.num_ready == 2  # the ps and the evaluator
    assert "ps:0 127.0.0.1:11 7 ready after 1.0 s" in world.look(10, *ALL)


def test_a_task_that_has_not_started_is_not_probed(world):
    world.look(1)
    assert (world.asked, world.start_up.num_ready) == ([], 0)


def test_an_ended_task_counts_as_ready(world):
    world.look(3, record_of("worker:0", ended=2.0))
    assert (world.asked, world.start_up.num_ready) == ([], 1)
    assert "worker:0 127.0.0.1:21 7 ready after 3.0 s" in world.look(10, record_of("worker:0"))


def test_an_evaluator_is_ready_when_it_runs():
    alone = World([Task("evaluator", 0, CLUSTER)])
    assert not alone.start_up.is_over
    alone.look(1, record_of("evaluator:0"))
    assert (alone.asked, alone.start_up.is_over) == ([], True)


def test_no_table_follows_once_all_tasks_are_ready(world):
    world.listening = {11, 21}
    world.look(1, *ALL)
    assert not world.start_up.is_over
    world.listening = {11, 21, 22}
    assert world.look(11, *ALL) is None
    assert world.start_up.is_over


def test_the_table_shows_a_task_that_is_stopped_or_has_ended(world):
    world.listening = {11, 21}
    world.look(1, *ALL)
    world.states = {"ps:0": "stopped", "worker:0": "exit code 1", "worker:1": "stopped"}
    rows = world.look(10, *ALL)[3:]
    assert rows == [
        "ps:0 127.0.0.1:11 7 stopped",
        "worker:0 127.0.0.1:21 7 exit code 1",
        "worker:1 127.0.0.1:22 7 stopped",
        "evaluator:0 7 ready after 1.0 s",
    ]


def test_a_trainer_that_has_noted_progress_is_ready_without_a_server(world):
    world.listening = {11}
    assert world.look(1, *ALL, noted=["worker:0", "worker:1"]) is None
    assert world.start_up.is_over
