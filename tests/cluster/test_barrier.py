"""The promises of both kinds of barrier, on a real ps."""

import copy
import itertools
import os
import pickle
import random
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import numpy as np
import pytest
import tensorflow as tf

from tfdist import (
    Barrier,
    BarrierError,
    BarrierTimeout,
    BrokenBarrierError,
    ClusterError,
    ConfigError,
    StartTimeout,
    Task,
)
from tfdist.barrier import connection, vector
from tfdist.barrier.rules import RESIGNED
from tfdist.deadline import Deadline
from tfdist.ps.session import DirectSession
from tfdist.runs.barrier_notes import passed_at
from tfdist.task import PROGRESS_VARIABLE
from tfdist.testing import poll_until

NUM_TRAINERS = 3
TIMEOUT = 20.0  # for what is expected to end; far more than it takes
SOON = 0.2  # for what is expected to time out


@pytest.fixture(scope="module")
def trainers():
    """The trainers of a cluster whose ps runs in this process for all tests of this file."""
    from tfdist import local_cluster

    with local_cluster(1, NUM_TRAINERS, backend="threads") as cluster:
        yield cluster.trainers


@pytest.fixture(autouse=True)
def _no_second_looks(monkeypatch):
    """A trainer that is not woken fails the test, instead of passing at the next recheck."""
    monkeypatch.setattr(connection, "RECHECK_SECS", 4 * TIMEOUT)


@pytest.fixture
def make(trainers, request, _no_second_looks):
    """Makes one barrier for each trainer, closed at the end; each call uses a new name."""
    made = []
    names = itertools.count()

    def make_all(kind, *, ranks=range(NUM_TRAINERS), name=None, **options):
        name = name or f"{request.node.name}/{next(names)}"
        barriers = [Barrier(trainers[rank], name, kind=kind, **options) for rank in ranks]
        made.extend(barriers)
        return barriers

    yield make_all
    for barrier in made:
        barrier.close()


@pytest.fixture(params=["queue", "counter"])
def kind(request):
    return request.param


def together(function, barriers):
    """Calls `function(barrier)` in a thread for each; returns results, or the errors raised."""

    def call(barrier):
        try:
            return function(barrier)
        except BarrierError as error:
            return error

    with ThreadPoolExecutor(len(barriers)) as pool:
        return list(pool.map(call, barriers))


def wait(barrier):
    """Waits for trainers that arrive at the same time; fails unless it was woken."""
    deadline = Deadline(TIMEOUT / 2)
    rank = barrier.wait(TIMEOUT)
    assert not deadline.expired, "it was not woken"
    return rank


def in_background(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_a_pass_is_marked_for_the_launcher_but_an_arrival_is_not(make, kind, tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress.json"))
    late, other = make(kind, parties=2, ranks=range(2))
    with pytest.raises(BarrierTimeout):
        late.wait(SOON)
    assert passed_at(tmp_path) is None
    together(wait, [late, other])
    assert passed_at(tmp_path) is not None


def test_each_trainer_gets_a_different_number(make, kind):
    assert sorted(together(wait, make(kind))) == [0, 1, 2]


def test_no_trainer_passes_before_all_have_arrived(make, kind):
    barriers = make(kind)
    arrivals = [0] * NUM_TRAINERS
    early = []

    def run(barrier):
        rank = barriers.index(barrier)
        for generation in range(1, 51):
            arrivals[rank] = generation
            barrier.wait(TIMEOUT)
            if min(arrivals) < generation:
                early.append((rank, generation, list(arrivals)))

    assert together(run, barriers) == [None] * NUM_TRAINERS
    assert early == []
    assert barriers[0].generation == 51


def test_n_waiting_and_missing_show_which_trainers_have_arrived(make, kind):
    barriers = make(kind)
    assert barriers[0].n_waiting == 0
    waiting = in_background(lambda: wait(barriers[1]))
    poll_until(lambda: barriers[0].n_waiting == 1, "worker:1 waits")
    assert barriers[0].missing() == ("worker:0", "worker:2")
    together(wait, [barriers[0], barriers[2]])
    waiting.join()
    assert barriers[0].n_waiting == 0


def test_a_timeout_names_the_missing_trainers(make, kind):
    barriers = make(kind)
    together(wait, barriers)
    errors = together(lambda barrier: barrier.wait(SOON), barriers[:2])
    for error in errors:
        assert isinstance(error, BarrierTimeout)
    assert barriers[0].missing() == ("worker:2",)
    with pytest.raises(BarrierTimeout) as caught:
        barriers[0].wait(0)
    assert caught.value.missing == ("worker:2",)
    assert caught.value.arrived == ("worker:0", "worker:1")
    assert caught.value.generation == 2
    assert "2 of 3 trainers" in str(caught.value)
    assert "missing worker:2, last seen in generation 1" in str(caught.value)


def test_a_long_wait_names_the_missing_trainers_on_the_log(make, kind, caplog, monkeypatch):
    monkeypatch.setattr(connection, "RECHECK_SECS", SOON / 2)
    monkeypatch.setattr("tfdist.deadline.FIRST_NOTICE_SECS", SOON)
    first, second, late = make(kind, name=f"long/{kind}")
    waits = in_background(lambda: together(wait, [first, second]))
    poll_until(lambda: len(caplog.records) >= 4, "both have logged twice")
    together(wait, [late])
    waits.join()
    for record in caplog.records:
        assert (record.name, record.levelname) == ("tfdist.barrier.participant", "WARNING")
    # Before the other has arrived, one of them may log 1 of 3.
    assert re.fullmatch(
        rf"barrier 'long/{kind}' generation 1: still waiting, 2 of 3 trainers after "
        r"\d\.\d s; missing worker:2, which has never arrived",
        caplog.messages[-1],
    )


def test_a_wait_that_ends_soon_logs_nothing(make, kind, caplog):
    barriers = make(kind)
    together(wait, barriers)
    with pytest.raises(BarrierTimeout):
        barriers[0].wait(SOON)
    assert caplog.messages == []


def test_a_long_wait_for_a_silent_ps_names_it_on_the_log(trainers, caplog, monkeypatch):
    monkeypatch.setattr("tfdist.deadline.FIRST_NOTICE_SECS", SOON)
    monkeypatch.setattr("tfdist.barrier.participant._CONNECT_SECS", 10 * SOON)
    monkeypatch.setattr(connection, "RECHECK_SECS", SOON)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        alone = Task("worker", 0, {"ps": [address], "worker": ["127.0.0.1:1"]})
        with pytest.raises(StartTimeout):
            Barrier(alone, "silent")
    assert re.fullmatch(
        rf"barrier 'silent': no answer from ps:0 at {address}, after \d s", caplog.messages[0]
    )


def test_after_a_timeout_a_late_trainer_completes_the_generation(make, kind):
    barriers = make(kind)
    with pytest.raises(BarrierTimeout, match="which has never arrived"):
        barriers[0].wait(SOON)
    assert not barriers[1].broken
    assert sorted(together(wait, barriers)) == [0, 1, 2]
    assert barriers[0].generation == 2


def test_a_trainer_that_timed_out_passes_after_the_others_have(make, kind):
    barriers = make(kind)
    with pytest.raises(BarrierTimeout):
        barriers[0].wait(SOON)
    together(wait, barriers[1:])  # trainer 0 counts as arrived
    assert barriers[0].wait(TIMEOUT) == 0  # the same generation still
    assert sorted(together(wait, barriers)) == [0, 1, 2]
    assert barriers[0].generation == 3


def test_a_short_wait_and_then_a_long_one_take_no_other_trainers_token(make, kind):
    barriers = make(kind, ranks=[0, 1], parties=2)
    with pytest.raises(BarrierTimeout):
        barriers[0].wait(0.02)
    first = in_background(lambda: wait(barriers[0]))
    assert wait(barriers[1]) == 1
    first.join()
    assert together(wait, barriers) == [0, 1]


def test_with_break_on_timeout_a_timeout_breaks_the_barrier_for_all(make, kind):
    barriers = make(kind, break_on_timeout=True)
    errors = together(lambda b: b.wait(SOON if b is barriers[0] else TIMEOUT), barriers[:2])
    assert isinstance(errors[0], BarrierTimeout)
    assert isinstance(errors[1], BrokenBarrierError)
    assert "worker:0 timed out" in str(errors[1])
    with pytest.raises(BrokenBarrierError):
        barriers[2].wait(TIMEOUT)


def test_the_barriers_own_timeout_is_the_default(make, kind):
    with pytest.raises(BarrierTimeout):
        make(kind, ranks=[0], timeout=SOON)[0].wait()


def test_the_action_runs_once_a_generation_before_any_trainer_passes(make, kind):
    runs, passed = [], []
    barriers = make(kind, action=lambda: runs.append(len(passed)))

    def run(barrier):
        for _ in range(5):
            barrier.wait(TIMEOUT)
            passed.append(barrier)

    together(run, barriers)
    # When it ran, all had passed the generations before, and none had passed its own.
    assert runs == [0, 3, 6, 9, 12]


def test_a_chief_that_arrives_last_runs_its_action(make, kind):
    barriers = make(kind, action=list)
    others = in_background(lambda: together(wait, barriers[1:]))
    poll_until(lambda: barriers[0].n_waiting == 2, "two wait")
    assert wait(barriers[0]) == 0
    others.join()


def test_in_the_action_the_straggler_has_waited_least(make, kind):
    seen = []
    barriers = make(kind, action=lambda: seen.append(barriers[0].statistics().last_wait))
    others = in_background(lambda: together(wait, barriers[:2]))
    poll_until(lambda: barriers[2].n_waiting == 2, "two wait")
    wait(barriers[2])
    others.join()
    assert min(seen[0], key=seen[0].get) == "worker:2"
    assert seen[0]["worker:2"] == 0.0
    assert barriers[0].statistics().total_wait == pytest.approx(seen[0])


# A message of one line, and one as TensorFlow writes it.
@pytest.mark.parametrize("text", ["disk full", "Graph execution error:\n\ndisk full"])
def test_a_failing_action_raises_its_text_in_all_waits(make, kind, text):
    def fail():
        raise ValueError(text)

    for error in together(wait, make(kind, action=fail)):
        assert isinstance(error, BrokenBarrierError)
        assert "worker:0 raised ValueError: disk full" in str(error)


class WithoutText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class ExitsAtText(Exception):
    def __str__(self):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ValueError("caf\udce9.csv"), r"ValueError: caf\udce9.csv"),
        (WithoutText(), "WithoutText: its text cannot be made"),
        (ExitsAtText(), "ExitsAtText: its text cannot be made"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=["surrogate", "without text", "exits", "Ctrl-C"],
)
def test_whatever_the_action_raises_breaks_the_barrier_for_all(make, raised, text):
    def fail():
        raise raised

    chief, *others = make("queue", action=fail)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wait, barrier) for barrier in others]
        with pytest.raises((BrokenBarrierError, KeyboardInterrupt)):
            wait(chief)
        for each in waiting:
            error = each.exception(TIMEOUT)
            assert isinstance(error, BrokenBarrierError)
            assert f"the action of worker:0 raised {text}" in str(error)


def test_an_action_that_waits_at_its_own_barrier_is_refused(make):
    def meet_again():
        chief.wait(TIMEOUT)

    chief, *_ = barriers = make("queue", action=meet_again)
    for error in together(wait, barriers):
        assert isinstance(error, BrokenBarrierError)
        assert "its own action called wait(), and would wait for itself" in str(error)


def test_an_action_that_closes_its_own_barrier_is_refused(make):
    chief, *_ = barriers = make("queue", action=lambda: chief.close())  # noqa: PLW0108
    for error in together(wait, barriers):
        assert isinstance(error, BrokenBarrierError)
        assert "its own action called close()" in str(error)


def test_an_action_that_turns_out_to_be_a_coroutine_breaks_the_barrier(make):
    async def save():
        pass

    for error in together(wait, make("queue", action=lambda: save())):  # noqa: PLW0108
        assert isinstance(error, BrokenBarrierError)
        assert "is a coroutine, which nothing awaits" in str(error)


def test_ctrl_c_in_the_action_arrives_although_the_ps_is_lost(make, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    (barrier,) = make("counter", ranks=[0], parties=1, action=interrupt)
    run, abort = (
        barrier._participant.connection.run,
        barrier._participant.connection.transitions.abort,
    )

    def lost(operation, *given, **options):
        if operation is abort:
            raise tf.errors.UnavailableError(None, None, "gone")
        return run(operation, *given, **options)

    monkeypatch.setattr(barrier._participant.connection, "run", lost)
    with pytest.raises(KeyboardInterrupt):
        barrier.wait(TIMEOUT)


def test_the_text_of_a_failed_action_is_cut(make):
    def fail():
        raise ValueError("x" * 10**6)

    (barrier,) = make("queue", ranks=[0], parties=1, action=fail)
    with pytest.raises(BrokenBarrierError, match="ValueError: xxx") as caught:
        barrier.wait(TIMEOUT)
    assert len(str(caught.value)) < 10**4


def test_a_closed_barrier_is_not_entered(make):
    (barrier,) = make("queue", ranks=[0], parties=1)
    barrier.close()
    with pytest.raises(BarrierError, match="was closed"), barrier:
        pass


def test_a_barrier_cannot_be_copied(make):
    [barrier] = make("queue", ranks=[0], parties=1)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a Barrier cannot be copied or pickled"):
            duplicate(barrier)


def test_a_wait_in_a_barrier_that_another_thread_closes_says_so(make, kind):
    first, second = make(kind, ranks=[0, 1], parties=2)
    make(kind, ranks=[0], parties=2)  # shares the session of the first
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.wait, TIMEOUT)
        poll_until(lambda: second.n_waiting == 1, "the first has arrived")
        first.close()
        with pytest.raises(BarrierError, match="was closed"):
            waiting.result(TIMEOUT)


def test_a_barrier_that_is_closed_while_it_renews_its_connection_stays_closed(make, monkeypatch):
    [barrier], enter = make("counter", ranks=[0], parties=1), connection.Connection.enter
    make("counter", ranks=[0], parties=1)  # shares the session

    def enter_and_be_closed(own, *args, **options):
        enter(own, *args, **options)
        barrier.close()

    monkeypatch.setattr(connection.Connection, "enter", enter_and_be_closed)
    barrier._participant.renew(Deadline(TIMEOUT))
    with pytest.raises(tf.errors.CancelledError):
        barrier._participant.connection.look()


@pytest.mark.parametrize("name", ["wait", "abort", "reset", "resign", "missing", "statistics"])
def test_a_closed_barrier_says_so(make, name):
    [barrier] = make("queue", ranks=[0], parties=1)
    barrier.close()
    barrier.close()
    with pytest.raises(BarrierError, match="was closed; make a new one"):
        getattr(barrier, name)()


def test_a_second_thread_that_waits_with_the_same_object_is_refused(make, kind):
    one, other = make(kind, ranks=[0, 1], parties=2)
    waiting = in_background(lambda: wait(one))
    poll_until(lambda: other.n_waiting == 1, "the first thread waits")
    with pytest.raises(BarrierError, match="another thread waits with this object for worker:0"):
        one.wait(SOON)
    assert other.wait(TIMEOUT) == 1
    waiting.join(TIMEOUT)
    assert one.generation == 2


def test_a_forked_child_cannot_use_the_barrier_and_does_not_close_it(make):
    [barrier] = make("queue", ranks=[0], parties=1)
    child = os.fork()
    if child == 0:
        try:
            barrier.close()
            with pytest.raises(ClusterError, match="forked from process"):
                make("queue", ranks=[0], parties=1)
            barrier.wait()
        except BarrierError as error:
            os._exit("Start the process with the method 'spawn'" in str(error))
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert barrier.wait(10) == 0


def test_a_timeout_of_a_process_that_joined_late_says_so(make):
    barriers = make("queue", ranks=[0, 1], parties=2)
    for _ in range(2):
        together(wait, barriers)
    [again] = make("queue", ranks=[1], parties=2, name=barriers[0].name)
    with pytest.raises(BarrierTimeout, match=r"has joined in generation 3: if its loop counts"):
        again.wait(SOON)


def test_a_second_object_for_the_same_trainer_is_reported_as_that(make, trainers):
    [first] = make("queue", ranks=[0], parties=1)
    with Barrier(trainers[0], first.name, parties=1) as second:
        assert second.wait(10) == 0
        with pytest.raises(BrokenBarrierError, match="made another Barrier of this name for"):
            first.wait(10)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True])
def test_a_wrong_timeout_is_refused(make, timeout):
    with pytest.raises(ConfigError, match=r"timeout: got .*; must be a number of seconds"):
        make("queue", timeout=timeout)
    [barrier, *_] = make("queue")
    with pytest.raises(ConfigError, match=r"timeout: got .*; must be a number of seconds"):
        barrier.wait(timeout)


@pytest.mark.parametrize("name", ["abort", "reset", "resign"])
def test_a_call_that_ctrl_c_interrupts_while_it_is_prepared_can_be_repeated(
    make, name, monkeypatch
):
    connection._transitions.cache_clear()  # so that the operation is built here
    (barrier,) = make("queue", ranks=[0], parties=1)
    pack = vector.pack

    def interrupted(state):
        monkeypatch.setattr(vector, "pack", pack)
        raise KeyboardInterrupt

    monkeypatch.setattr(vector, "pack", interrupted)
    call = getattr(barrier, name)
    with pytest.raises(KeyboardInterrupt):
        call()
    call()
    state = barrier._look().arrivals
    assert (state.broken, state.resets, state.arrived[0] == RESIGNED) == {
        "abort": (True, 0, False),
        "reset": (False, 1, False),
        "resign": (False, 0, True),
    }[name]


def test_abort_raises_in_present_and_later_waits(make, kind):
    barriers = make(kind)
    errors = []
    waiting = in_background(lambda: errors.extend(together(wait, barriers[:2])))
    poll_until(lambda: barriers[2].n_waiting == 2, "two wait")
    barriers[2].abort()
    waiting.join(TIMEOUT)
    with pytest.raises(BrokenBarrierError):
        barriers[2].wait(TIMEOUT)
    assert [type(error) for error in errors] == [BrokenBarrierError] * 2
    assert "worker:2 called abort()" in str(errors[0])
    assert barriers[0].broken


def test_reset_raises_in_present_waits_and_mends_the_barrier(make, kind):
    barriers = make(kind)
    errors = []
    waiting = in_background(lambda: errors.extend(together(wait, barriers[:2])))
    poll_until(lambda: barriers[2].n_waiting == 2, "two wait")
    barriers[2].reset()
    waiting.join(TIMEOUT)
    assert [type(error) for error in errors] == [BrokenBarrierError] * 2
    assert "reset" in str(errors[0])
    assert sorted(together(wait, barriers)) == [0, 1, 2]


def test_after_an_abort_and_a_reset_all_pass_again(make, kind):
    barriers = make(kind)
    barriers[0].abort()
    barriers[0].reset()
    for _ in range(3):
        assert sorted(together(wait, barriers)) == [0, 1, 2]


def test_no_trainer_waits_for_a_resigned_one(make, kind):
    barriers = make(kind)
    errors = []
    waiting = in_background(lambda: errors.extend(together(wait, barriers[:2])))
    poll_until(lambda: barriers[2].n_waiting == 2, "two wait")
    barriers[2].resign()  # completes the generation
    waiting.join(TIMEOUT)
    assert errors == [0, 1]
    for _ in range(10):
        assert together(wait, barriers[:2]) == [0, 1]


def test_a_resigned_trainer_cannot_wait(make, kind):
    (barrier,) = make(kind, ranks=[1])
    barrier.resign()
    with pytest.raises(BarrierError, match="worker:1 has resigned"):
        barrier.wait(TIMEOUT)


def test_the_chief_with_an_action_cannot_resign(make, kind):
    with pytest.raises(BarrierError, match="cannot resign"):
        make(kind, ranks=[0], action=list)[0].resign()


def test_a_restarted_trainer_continues_in_its_generation_and_counts_once(make, kind):
    barriers = make(kind, name=f"restart/{kind}")
    for _ in range(3):
        together(wait, barriers)
    with pytest.raises(BarrierTimeout):
        barriers[1].wait(SOON)
    (again,) = make(kind, ranks=[1], name=f"restart/{kind}")  # a new incarnation of worker:1
    assert again.n_waiting == 1
    assert sorted(together(wait, [barriers[0], again, barriers[2]])) == [0, 1, 2]
    assert again.generation == 5


def test_a_restarted_trainer_passes_if_its_generation_was_released_meanwhile(make, kind):
    barriers = make(kind, ranks=[0, 1], parties=2, name=f"meanwhile/{kind}")
    with pytest.raises(BarrierTimeout):
        barriers[0].wait(0)
    (again,) = make(kind, ranks=[0], parties=2, name=f"meanwhile/{kind}")
    assert wait(barriers[1]) == 1  # completes the generation of the old incarnation's arrival
    assert wait(again) == 0


def test_an_arrival_after_resigning_changes_nothing(make, kind):
    (barrier,) = make(kind, ranks=[1])
    barrier.resign()
    before = barrier._participant.connection.look().arrivals
    for arrive in barrier._participant.connection.transitions.arrive:
        barrier._participant.connection.run(arrive)
    assert barrier._participant.connection.look().arrivals == before


def test_fewer_parties_than_trainers(make, kind):
    barriers = make(kind, ranks=[0, 1], parties=2)
    assert barriers[0].parties == 2
    assert together(wait, barriers) == [0, 1]


def test_a_trainer_restarted_after_its_arrival_is_woken(make, kind):
    first, old, last = make(kind, name=f"again/{kind}")
    with pytest.raises(BarrierTimeout):
        old.wait(SOON)
    (again,) = make(kind, ranks=[1], name=f"again/{kind}")
    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(wait, again)
        assert wait_for([waiting], 2 * SOON).not_done  # it blocks before the others come
        others = [pool.submit(wait, barrier) for barrier in (first, last)]
        assert [each.result(TIMEOUT) for each in (waiting, *others)] == [1, 0, 2]


def test_many_barriers_share_one_session(make, kind, monkeypatch):
    opened, open_session = [], DirectSession._open
    monkeypatch.setattr(DirectSession, "_open", lambda own: opened.append(own) or open_session(own))
    barriers = [make(kind, ranks=[0], parties=1)[0] for _ in range(200)]
    assert len(opened) == 1
    for barrier in barriers[1:]:
        barrier.close()
    assert barriers[0].generation == 1
    barriers[0].close()
    (again,) = make(kind, ranks=[0], parties=1)
    assert again.wait() == 0


def test_a_single_party_never_waits(make, kind):
    (barrier,) = make(kind, ranks=[0], parties=1)
    for _ in range(3):
        assert barrier.wait(TIMEOUT) == 0


def test_repr_shows_the_trainer_and_whether_it_has_arrived(make, kind):
    (barrier,) = make(kind, ranks=[1], name=f"shown/{kind}")
    assert repr(barrier) == (f"<Barrier 'shown/{kind}' of 3 parties: worker:1 has not arrived>")
    with pytest.raises(BarrierTimeout):
        barrier.wait(SOON)
    assert "worker:1 has arrived>" in repr(barrier)
    barrier.resign()
    assert "worker:1 has resigned>" in repr(barrier)


def test_a_wrong_timeout_of_an_operation_is_refused_when_it_is_built(make):
    (barrier,) = make("queue", ranks=[0], parties=1)
    with tf.Graph().as_default():
        with pytest.raises(ConfigError, match="timeout"):
            barrier.op(timeout=-1)
        barrier.close()
        with pytest.raises(BarrierError, match="was closed"):
            barrier.op()


@pytest.mark.rotates(20)  # all
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kind": "spin"}, "kind"),
        ({"kind": np.array(["queue"])}, "kind"),
        ({"parties": 4}, "parties"),
        ({"parties": 0}, "parties"),
        ({"break_on_timeout": "False"}, "break_on_timeout"),
    ],
)
def test_wrong_parameters_are_named(trainers, options, field):
    with pytest.raises(ConfigError) as caught:
        Barrier(trainers[0], "wrong", **options)
    assert caught.value.field == field


def test_a_barrier_is_an_instance_of_the_class(make, kind):
    (barrier,) = make(kind, ranks=[1])
    assert isinstance(barrier, Barrier)


def test_the_class_cannot_be_subclassed():
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Mine", (Barrier,), {})


def test_trainers_have_to_agree_on_the_parties(make, kind, trainers):
    make(kind, ranks=[1], name=f"agree/{kind}")
    with pytest.raises(ConfigError, match="other trainers made barrier"):
        Barrier(trainers[0], f"agree/{kind}", kind=kind, parties=2)


def test_a_ps_cannot_make_a_barrier(trainers):
    ps = Task("ps", 0, trainers[0].cluster_spec)
    with pytest.raises(ConfigError, match="only a chief or a worker"):
        Barrier(ps, "wrong")


def test_a_restarted_script_with_the_same_seed_is_another_incarnation():
    incarnations = []
    for _ in range(2):
        random.seed(1)
        incarnations.append((vector.new_incarnation(), vector.new_ps_incarnation()))
    assert incarnations[0][0] != incarnations[1][0]
    assert incarnations[0][1] != incarnations[1][1]
