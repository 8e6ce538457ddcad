"""Who is there, and when it is said who is not."""

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
    """A clock, and who listens; `asked` are the ports at which somebody was looked for."""

    def __init__(self, tasks=TASKS):
        self.now, self.listening, self.asked = 100.0, set(), []
        self.start_up = StartUp(tasks, clock=lambda: self.now, listens=self._listens)

    def _listens(self, host, port, timeout):
        assert (host, timeout > 0) == ("127.0.0.1", True)
        self.asked.append(port)
        return port in self.listening

    def look(self, seconds, *records):
        """At that many seconds after the beginning; the table as lines of words, or None."""
        self.now = 100.0 + seconds
        table = self.start_up.look(records)
        if table is None:
            return None
        text = io.StringIO()
        Console(file=text, width=100).print(table)
        return [" ".join(line.split()) for line in text.getvalue().splitlines() if line.strip()]


@pytest.fixture
def world():
    return World()


def life(name, ended=None):
    return TaskRecord(name, 1, 7, 0.0, ended, None if ended is None else 0)


ALL = [life(task.name) for task in TASKS]


def test_a_table_says_of_each_task_where_it_stands(world):
    world.listening = {11}
    assert world.look(2.5, life("ps:0")) is None
    title, header, _, *rows = world.look(10, life("ps:0"), life("worker:0"))
    assert title == "tfdist: after 10 s not everybody is there"
    assert header == "task address pid state"
    assert rows == [
        "ps:0 127.0.0.1:11 7 there after 2.5 s",
        "worker:0 127.0.0.1:21 7 runs, but its server does not listen",
        "worker:1 127.0.0.1:22 not started",
        "evaluator:0 not started",
    ]


def test_tables_come_after_10_s_and_then_at_growing_intervals(world):
    moments = [moment / 10 for moment in range(1000)]
    assert [m for m in moments if world.look(m, *ALL)] == [10.0, 20.0, 40.0, 80.0]


def test_whoever_has_been_there_is_not_looked_for_again(world):
    world.listening = {11}
    world.look(1, *ALL)
    world.listening = set()
    world.look(2, *ALL)
    assert world.asked == [11, 21, 22, 21, 22]
    assert world.start_up.num_there == 2  # the ps and the evaluator
    assert "ps:0 127.0.0.1:11 7 there after 1.0 s" in world.look(10, *ALL)


def test_nobody_calls_a_task_that_has_not_begun(world):
    world.look(1)
    assert (world.asked, world.start_up.num_there) == ([], 0)


def test_a_task_that_has_ended_has_been_there(world):
    world.look(3, life("worker:0", ended=2.0))
    assert (world.asked, world.start_up.num_there) == ([], 1)
    assert "worker:0 127.0.0.1:21 7 there after 3.0 s" in world.look(10, life("worker:0"))


def test_an_evaluator_is_there_when_it_runs():
    alone = World([Task("evaluator", 0, CLUSTER)])
    assert not alone.start_up.is_over
    alone.look(1, life("evaluator:0"))
    assert (alone.asked, alone.start_up.is_over) == ([], True)


def test_it_is_over_when_the_last_one_has_come(world):
    world.listening = {11, 21}
    world.look(1, *ALL)
    assert not world.start_up.is_over
    world.listening = {11, 21, 22}
    assert world.look(11, *ALL) is None
    assert world.start_up.is_over
