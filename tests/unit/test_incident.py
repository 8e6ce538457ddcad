"""A fault comes at its moment and is over with the block; a seed says which, where and when."""

import threading

import pytest

from tfdist.errors import ClusterError, ConfigError
from tfdist.testing import Incident, poll_until, random_incident
from tfdist.testing.faults import Unplug
from tfdist.testing.task_faults import Kill, Pause, Restart

EVERYTHING = {"hosts": ("a", "b", "c"), "relayed": ("c",), "tasks": ("ps:0", "worker:0")}
NO_NETWORK = None  # for faults of tasks


class FakeTasks:
    """Notes what happens to its tasks."""

    def __init__(self, refuses=()):
        self.calls, self.refuses, self.has_happened = [], refuses, threading.Event()

    def __getattr__(self, name):
        def call(task):
            self.calls.append((name, task))
            self.has_happened.set()
            if name in self.refuses:
                raise ClusterError(f"no {name}")

        return call


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        (Kill("ps:0"), ["kill"]),
        (Restart("ps:0"), ["kill", "restart"]),
        (Pause("ps:0"), ["pause", "resume"]),
    ],
)
def test_it_lasts_until_the_block_ends(fault, calls):
    tasks = FakeTasks()
    with Incident(fault, 0.0, 600.0).during(NO_NETWORK, tasks):
        assert tasks.has_happened.wait(10)
    assert tasks.calls == [(call, "ps:0") for call in calls]


def test_it_ends_by_itself_before_that():
    tasks = FakeTasks()
    with Incident(Pause("ps:0"), 0.0, 0.0).during(NO_NETWORK, tasks):
        poll_until(lambda: len(tasks.calls) == 2, "it is over")


def test_what_has_not_begun_does_not_begin():
    tasks = FakeTasks()
    with Incident(Kill("ps:0"), 600.0, 0.0).during(NO_NETWORK, tasks):
        pass
    assert tasks.calls == []


@pytest.mark.parametrize("refused", ["pause", "resume"])
def test_what_it_raises_is_raised_after_the_block_if_that_has_not_raised(refused):
    tasks = FakeTasks(refuses=[refused])
    incident = Incident(Pause("ps:0"), 0.0, 600.0)
    with pytest.raises(ClusterError, match=refused), incident.during(NO_NETWORK, tasks):
        assert tasks.has_happened.wait(10)
    with pytest.raises(ZeroDivisionError), incident.during(NO_NETWORK, FakeTasks([refused])):
        raise ZeroDivisionError


def test_a_fault_of_a_task_needs_tasks():
    with pytest.raises(ConfigError, match="tasks: got None"):
        Incident(Kill("ps:0"), 0.0, 0.0).during(NO_NETWORK).__enter__()


def test_the_same_seed_gives_the_same_incident():
    assert random_incident(7, **EVERYTHING) == random_incident(7, **EVERYTHING)
    # As it was: a report of a failure names its seed alone.
    assert random_incident(7, **EVERYTHING) == Incident(Kill("worker:0"), 4.018, 4.861)


def test_all_faults_places_and_moments_come():
    found = [random_incident(seed, **EVERYTHING) for seed in range(300)]
    assert {type(incident.fault).__name__ for incident in found} == {
        "Bandwidth", "Cut", "Delay", "DiskFull", "Kill", "LinkDown", "Loss", "OneWayCut", "Pause",
        "Restart", "Unplug",
    }  # fmt: skip
    assert {incident.fault.host for incident in found if type(incident.fault) is Unplug} == {
        "a",
        "b",
        "c",
    }
    assert all(0 <= incident.after_secs <= 5 and 0 <= incident.for_secs <= 5 for incident in found)
    assert len({incident.after_secs for incident in found}) > 250


def test_only_what_is_possible_is_chosen():
    for seed in range(100):
        assert random_incident(seed, tasks=["t"], within_secs=1.0).after_secs <= 1
        assert type(random_incident(seed, hosts=["a"]).fault).__name__ in {
            "Bandwidth", "DiskFull", "LinkDown", "Unplug",
        }  # fmt: skip
    with pytest.raises(ConfigError, match="hosts: got"):
        random_incident(1)
