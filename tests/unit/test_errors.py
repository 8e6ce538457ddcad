"""The error tree: base classes, messages, and pickling between processes."""

import pickle
import re
import threading
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from tfdist import errors
from tfdist.errors import (
    BarrierError,
    BarrierTimeout,
    BrokenBarrierError,
    ClusterError,
    ConfigError,
    DataError,
    EpochError,
    RunTimeout,
    ServerError,
    SplitLostError,
    StallError,
    StartTimeout,
    TaskFailed,
    TfdistError,
    reason_of,
)

# One error of each class.
SAMPLES = [
    ServerError("the server has not started", "its last lines"),
    TfdistError("text"),
    ConfigError("task.index", -1, "at least 0"),
    ClusterError("text"),
    StartTimeout(["ps:0", "worker:1"], 2.5, "is it up?"),
    RunTimeout(["worker:1"], 60.0),
    StallError(
        60.2, ["worker:1 passed a barrier"], {"worker:0": "epoch 1: 3 of 10"}, "/a/stall.txt"
    ),
    TaskFailed("worker:1", -9, "last log lines"),
    BarrierError("text"),
    BarrierTimeout("text", name="end", generation=7, arrived=["worker:0"], missing=["worker:1"]),
    BrokenBarrierError("end", "worker:1 called abort()"),
    EpochError("text", missing=[(0, 2)], duplicates=[(5, 6)]),
    SplitLostError(1, "another process runs as this trainer"),
    DataError("part-3", 107, "truncated"),
]


def drawn_tree() -> dict[str, str]:
    """Child -> parent, read from the drawing in the module's docstring."""
    path: list[str] = []
    parents = {}
    for line in (errors.__doc__ or "").splitlines():
        if drawn := re.match(r"    ((?:\|  |   )*)[|`]- (\w+)", line):
            depth = len(drawn[1]) // 3 + 1
            path[depth:] = [drawn[2]]
            parents[drawn[2]] = path[depth - 1]
        elif root := re.match(r"    (\w+)$", line):
            path = [root[1]]
    return parents


def test_the_drawing_shows_every_class_and_its_parent():
    defined = {
        thing.__name__: thing.__bases__[0].__name__
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, Exception) and thing is not TfdistError
    }
    assert drawn_tree() == defined


def test_every_class_has_a_sample():
    assert {type(error).__name__ for error in SAMPLES} == {"TfdistError", *drawn_tree()}


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
class TestEveryError:
    def test_is_caught_as_a_tfdist_error(self, error):
        assert isinstance(error, TfdistError)

    def test_survives_pickling_with_its_message_and_attributes(self, error):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)
        assert copy.args == error.args

    def test_survives_pickling_with_a_note(self, error):
        error = pickle.loads(pickle.dumps(error))
        error.__notes__ = ["on host7"]  # as add_note does, from Python 3.11 on
        assert pickle.loads(pickle.dumps(error)).__notes__ == ["on host7"]


@pytest.mark.parametrize(
    ("error_type", "builtin"),
    [
        (ConfigError, ValueError),
        (StartTimeout, TimeoutError),
        (RunTimeout, TimeoutError),
        (BarrierTimeout, TimeoutError),
        (BarrierTimeout, threading.BrokenBarrierError),
        (BrokenBarrierError, threading.BrokenBarrierError),
    ],
)
def test_is_also_caught_as_the_builtin_error_of_its_kind(error_type, builtin):
    assert issubclass(error_type, builtin)


def test_a_broken_barrier_is_no_timeout():
    assert not issubclass(BrokenBarrierError, TimeoutError)


def test_a_config_error_names_field_value_and_rule():
    error = ConfigError("ps_hosts", "a:b", "must be 'host:port'")
    assert (error.field, error.value, error.rule) == ("ps_hosts", "a:b", "must be 'host:port'")
    assert str(error) == "ps_hosts: got 'a:b'; must be 'host:port'"


def test_a_start_timeout_names_the_missing_tasks_the_timeout_and_what_to_do():
    error = StartTimeout(["ps:0", "worker:1"], 2.5, "is it up?")
    assert (error.missing, error.timeout) == (("ps:0", "worker:1"), 2.5)
    assert str(error) == "not ready after 2.5 s: ps:0, worker:1. is it up?"


def test_a_run_timeout_names_the_running_tasks_and_the_timeout():
    error = RunTimeout(["ps:0", "worker:1"], 60.0)
    assert (error.running, error.timeout) == (("ps:0", "worker:1"), 60.0)
    assert str(error) == "still running after 60.0 s: ps:0, worker:1"


def test_a_stall_error_names_its_length_the_last_progress_and_the_place_of_each_trainer():
    places = {"worker:0": "epoch 1: 3 of 10", "worker:1": "has noted no progress"}
    error = StallError(60.24, ["worker:1 started", "ps:0 started"], places, "/a/stall.txt")
    assert (error.seconds, error.last) == (60.24, ("worker:1 started", "ps:0 started"))
    assert (error.places, error.report) == (places, "/a/stall.txt")
    assert str(error) == (
        "no task has made progress for 60.2 s\n  last progress: worker:1 started, ps:0 started\n"
        "  worker:0: epoch 1: 3 of 10\n  worker:1: has noted no progress\n"
        "  the report is in /a/stall.txt"
    )


def test_a_stall_error_without_details_names_its_length():
    assert str(StallError(3.0, [], {})) == "no task has made progress for 3.0 s"


@pytest.mark.parametrize(
    ("exit_code", "message"),
    [
        (None, "worker:1 raised an error\nlast words"),
        (3, "worker:1 ended with exit code 3\nlast words"),
        (-40, "worker:1 was killed by signal 40 (SIGRTMIN+6)\nlast words"),
        (-9, "worker:1 was killed by signal 9 (SIGKILL)\nlast words"),
        (0, "worker:1 ended with exit code 0\nlast words"),
    ],
)
def test_a_failed_task_is_named_with_its_end_and_its_details(exit_code, message):
    error = TaskFailed("worker:1", exit_code, "last words\n")
    assert str(error) == message
    assert (error.task_name, error.exit_code) == ("worker:1", exit_code)


def test_a_failed_task_without_details_leaves_no_empty_line():
    assert str(TaskFailed("ps:0", 1, "")) == "ps:0 ended with exit code 1"


def test_a_barrier_timeout_holds_the_arrived_and_the_missing_trainers():
    error = BarrierTimeout("late", name="end", generation=7, arrived=["a"], missing=["b", "c"])
    assert (error.name, error.generation, error.arrived, error.missing) == (
        "end",
        7,
        ("a",),
        ("b", "c"),
    )
    assert str(error) == "late"


def test_a_broken_barrier_error_names_the_barrier_and_the_reason():
    error = BrokenBarrierError("end", "worker:1 called abort()")
    assert (error.name, error.reason) == ("end", "worker:1 called abort()")
    assert str(error) == "barrier 'end' is broken: worker:1 called abort()"


def test_an_epoch_error_holds_both_kinds_of_ranges():
    error = EpochError("uneven", missing=[(0, 2)], duplicates=[(5, 6)])
    assert (error.missing, error.duplicates) == (((0, 2),), ((5, 6),))


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (107, "part-3: at byte 107: truncated"),
        (0, "part-3: at byte 0: truncated"),
        (None, "part-3: truncated"),
    ],
)
def test_a_data_error_names_the_file_the_offset_and_the_damage(offset, message):
    error = DataError("part-3", offset, "truncated")
    assert str(error) == message
    assert (error.path, error.offset, error.what) == ("part-3", offset, "truncated")


DETECTED = """Detected at node 'save' defined at (most recent call last):
  File "job.py", line 1, in <module>
Node: 'save'
"""


@pytest.mark.parametrize(
    "text",
    [
        "disk full",
        "\ndisk full\nmore",
        "Graph execution error:\n\ndisk full\n\t [[save]]",
        "Graph execution error:\n\nDetected at node 'save' defined at (most recent call last):\n"
        "  File \"job.py\", line 1, in <module>\nNode: 'save'\ndisk full\n\t [[{{node save}}]]",
    ],
)
def test_the_reason_of_an_error_is_found_after_its_headings(text):
    assert reason_of(text) == "disk full"


def test_an_error_without_a_text_has_no_reason():
    assert reason_of("") == ""


def test_a_value_that_cannot_be_shown_or_is_long_is_shortened():
    for value in (10**5000, [(0, 10**5000)], "x" * 10_000, list(range(10_000))):
        error = ConfigError("parties", value, "must be less")
        assert len(str(error)) < 2200
        assert error.value is value
        assert str(error).endswith("; must be less")
        assert re.match(r"parties: got (a value of type |'x|\[0, )", str(error))


@pytest.mark.parametrize("value", [10**400, Fraction(10**400), -(10**400)], ids=repr)
def test_a_number_that_no_float_can_hold_is_no_number_of_seconds(value):
    for check in (errors.checked_timeout, partial(errors.checked_secs, "timeout")):
        with pytest.raises(ConfigError) as caught:
            check(value)
        assert caught.value.value is value


def test_a_flag_is_true_or_false():
    for flag in (True, False, np.bool_(True), np.bool_(False)):
        assert errors.checked_flag("chief", flag) is bool(flag)
    for wrong in ("False", "no", "", 0, 1, None, [0], [], np.array([True]), np.int64(1)):
        with pytest.raises(ConfigError, match="must be True or False") as caught:
            errors.checked_flag("chief", wrong)
        assert (caught.value.field, caught.value.value is wrong) == ("chief", True)


async def coroutine(_: object = None) -> None: ...


async def generator_of_coroutines():
    yield


def generator():
    yield


class Asynchronous:
    async def __call__(self) -> None: ...

    async def save(self) -> None: ...


class Generates:
    def __call__(self):
        yield


class Empty(list[int]):
    """A function that counts as false."""

    def __call__(self) -> None: ...


LAZY = [coroutine, generator_of_coroutines, generator, Asynchronous(), Asynchronous().save]
LAZY += [Generates(), lambda: (yield)]


@pytest.mark.parametrize("action", [*LAZY, *map(partial, LAZY), 5, "save", ""])
def test_what_runs_nothing_when_it_is_called_is_no_action(action):
    rule = "must be a function without arguments, or None; no generator and no coroutine"
    with pytest.raises(ConfigError) as caught:
        errors.checked_action("action", action)
    assert (caught.value.field, caught.value.rule) == ("action", rule)


@pytest.mark.parametrize("action", [None, len, partial(len, ""), list, Empty(), "".upper])
def test_a_function_is_an_action(action):
    assert errors.checked_action("action", action) is action


def test_an_action_that_has_to_be_given():
    with pytest.raises(ConfigError, match="must be a function that builds it; no generator"):
        errors.checked_action("apply", None, "that builds it", may_be_none=False)
