"""The same tests for `threading.Barrier` and for both kinds of `tfdist.Barrier`.

Ours is made with `break_on_timeout`. Where it differs, as docs/barrier.md says, the test has a
branch with `ours` and a comment on the difference.
"""

import threading
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import pytest

from tfdist import Barrier, BrokenBarrierError, local_cluster
from tfdist.barrier import connection
from tfdist.testing import poll_until

N = 3
TIMEOUT = 20.0  # for what is expected to end; far more than it takes
PROMPT = 5.0  # for what must not wait for anything
SOON = 0.2  # for what is expected to time out
PATIENCE = 4.0  # with a ps that answers late

# BarrierTimeout and BrokenBarrierError are subclasses of it.
Broken = threading.BrokenBarrierError


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    # threading has no silent ps, and a ps on a busy machine may seem silent.
    monkeypatch.setattr(connection, "_LAST_ANSWER_SECS", PATIENCE)


@pytest.fixture(scope="module", params=["threading", "queue", "counter"])
def library(request):
    return request.param


@pytest.fixture(scope="module")
def ours(library):
    return library != "threading"


@pytest.fixture(scope="module")
def trainers():
    with local_cluster(1, N, backend="threads") as cluster:
        yield cluster.trainers


@pytest.fixture(scope="module")
def make(library, request):
    """The objects of a barrier by rank; a barrier is made once for each `name`, then reset."""
    made = {}

    def make_all(name, *, parties=N, action=None, timeout=None):
        if name in made:
            made[name][0].reset()
        elif library == "threading":
            made[name] = [threading.Barrier(parties, action, timeout)] * parties
        else:
            made[name] = [
                Barrier(
                    trainer,
                    name,
                    parties=parties,
                    action=action,
                    timeout=timeout,
                    kind=library,
                    break_on_timeout=True,
                )
                for trainer in trainers[:parties]
            ]
        return made[name]

    trainers = () if library == "threading" else request.getfixturevalue("trainers")
    yield lambda name, **options: make_all(f"{library}/{name}", **options)
    if library != "threading":
        for barriers in made.values():
            for barrier in barriers:
                barrier.close()


@pytest.fixture
def barriers(make):
    return make("plain")


class Hook:
    """An action that can be changed, so that the tests share one barrier."""

    def __init__(self):
        self.do = lambda: None

    def __call__(self):
        self.do()


@pytest.fixture(scope="module")
def hook(library):
    return Hook()


@pytest.fixture
def acting(make, hook):
    """Barriers whose action is the present `hook.do`."""
    hook.do = lambda: None
    return make("acting", action=hook)


def call(function):
    """The result, or the error that it raised."""
    try:
        return function()
    except Exception as error:
        return error


def together(function, barriers):
    """Calls `function(rank, barrier)` for all at once; results or errors by rank."""
    with ThreadPoolExecutor(len(barriers)) as pool:
        return list(pool.map(lambda pair: call(lambda: function(*pair)), list(enumerate(barriers))))


def wait(rank, barrier):
    return barrier.wait(TIMEOUT)


def all_pass(barriers):
    return sorted(together(wait, barriers)) == list(range(len(barriers)))


class Waiting:
    """Waits in the background; made when all of them have arrived."""

    def __init__(self, barriers, seen_from, in_all=None, timeout=TIMEOUT):
        self._pool = ThreadPoolExecutor(len(barriers))
        self._waits = [self._pool.submit(barrier.wait, timeout) for barrier in barriers]
        in_all = in_all or len(barriers)
        poll_until(lambda: seen_from.n_waiting == in_all, "they wait", timeout=TIMEOUT)

    def ended(self, timeout):
        """Blocks until they have ended, or the time is over."""
        futures.wait(self._waits, timeout)

    def ends(self):
        """Their results or errors, which have to come promptly."""
        with self._pool:
            return [call(lambda wait=wait: wait.result(PROMPT)) for wait in self._waits]


def assert_broken(barriers):
    """Checks that `broken` is true, and that every wait raises immediately."""
    assert [barrier.broken for barrier in barriers] == [True] * len(barriers)
    start = time.monotonic()
    for _ in range(2):
        for barrier in barriers:
            with pytest.raises(Broken):
                barrier.wait(TIMEOUT)
    assert time.monotonic() - start < PROMPT


def test_no_trainer_passes_early_in_many_generations(barriers):
    rounds = [0] * N
    early = []

    def run(rank, barrier):
        numbers = []
        for generation in range(1, 26):
            rounds[rank] = generation
            numbers.append(barrier.wait(TIMEOUT))
            if min(rounds) < generation:
                early.append((rank, generation, list(rounds)))
        return numbers

    numbers = together(run, barriers)
    assert early == []
    for of_one_generation in zip(*numbers, strict=True):
        assert sorted(of_one_generation) == list(range(N))
    assert not barriers[0].broken


def test_wait_returns_a_different_number_to_each(barriers, ours):
    for _ in range(3):
        numbers = together(wait, barriers)
        assert sorted(numbers) == list(range(N))
        if ours:  # always the rank; in threading the order of arrival, which is not promised
            assert numbers == list(range(N))


def test_a_single_party_does_not_wait(make):
    (barrier,) = make("single", parties=1)
    assert [barrier.wait() for _ in range(3)] == [0] * 3
    assert barrier.n_waiting == 0


def test_parties_n_waiting_and_broken(barriers):
    first = barriers[0]
    assert (first.parties, first.n_waiting, first.broken) == (N, 0, False)
    waiting = Waiting(barriers[1:], seen_from=first)
    assert (first.parties, first.n_waiting, first.broken) == (N, N - 1, False)
    first.wait(TIMEOUT)
    waiting.ends()
    assert (first.parties, first.n_waiting, first.broken) == (N, 0, False)


@pytest.mark.parametrize("name", ["parties", "n_waiting", "broken"])
def test_the_properties_are_read_only(barriers, name):
    with pytest.raises(AttributeError):
        setattr(barriers[0], name, 1)


def test_repr_works_on_a_broken_barrier(barriers, ours):
    def texts():
        return [repr(barrier) for barrier in barriers]

    for text in texts():
        assert "Barrier" in text
        if ours:  # without n_waiting, unlike threading: a repr should not ask the network
            assert f"{N} parties" in text
    barriers[0].abort()
    assert all("Barrier" in text for text in texts())


def test_the_action_runs_once_a_generation_before_any_trainer_passes(acting, hook, ours):
    runs, passed = [], []

    def act():
        runs.append((threading.get_ident(), len(passed)))

    hook.do = act
    threads = {}

    def run(rank, barrier):
        threads[rank] = threading.get_ident()
        for _ in range(3):
            barrier.wait(TIMEOUT)
            passed.append(rank)

    assert together(run, acting) == [None] * N
    assert [seen for _, seen in runs] == [0, N, 2 * N]
    if ours:  # the chief runs it; in threading any thread
        assert {thread for thread, _ in runs} == {threads[0]}
    else:
        assert {thread for thread, _ in runs} <= set(threads.values())


def test_a_failing_action_breaks_it_for_all_until_a_reset(acting, hook, ours):
    failure = ValueError("the disk is full")

    def fail():
        raise failure

    hook.do = fail
    errors = together(wait, acting)
    if ours:  # all get BrokenBarrierError, with its text; the chief's has the failure as its cause
        assert [type(error) for error in errors] == [BrokenBarrierError] * N
        assert all("the disk is full" in str(error) for error in errors)
        assert errors[0].__cause__ is failure
    else:  # the thread that ran the action gets the failure itself
        assert sum(error is failure for error in errors) == 1
        assert sum(isinstance(error, Broken) for error in errors) == N - 1
    assert_broken(acting)
    hook.do = lambda: None
    acting[-1].reset()
    assert all_pass(acting)


def test_a_timeout_of_another_trainer_while_the_action_runs(acting, hook, ours):
    # In this order rank 0 arrives last, so that it runs the action in threading too.
    long = Waiting(acting[1:2], seen_from=acting[0])
    short = Waiting(acting[2:], seen_from=acting[0], in_all=2, timeout=5 * SOON)
    # In threading a timeout shows only after the action, so the action cannot wait for it.
    hook.do = (lambda: short.ended(TIMEOUT)) if ours else (lambda: short.ended(6 * SOON))
    results = [call(lambda: acting[0].wait(TIMEOUT)), *long.ends(), *short.ends()]
    if ours:  # the action does not extend the timeouts of the others
        assert all(isinstance(error, Broken) for error in results)
        assert_broken(acting)
    else:  # a thread that times out while the action runs passes
        assert sorted(results) == list(range(N))


def test_abort_raises_in_present_and_later_waits(barriers):
    waiting = Waiting(barriers[:-1], seen_from=barriers[-1])
    barriers[-1].abort()
    assert all(isinstance(error, Broken) for error in waiting.ends())
    assert_broken(barriers)
    barriers[0].abort()  # a second one changes nothing
    assert_broken(barriers)


def test_abort_by_a_trainer_that_then_waits_itself(barriers):
    def run(rank, barrier):
        if rank == 1:
            barrier.abort()
        return barrier.wait(TIMEOUT)

    assert all(isinstance(error, Broken) for error in together(run, barriers))
    assert_broken(barriers)


def test_n_waiting_of_a_broken_barrier_is_0(barriers):
    waiting = Waiting(barriers[:-1], seen_from=barriers[-1])
    barriers[-1].abort()
    waiting.ends()
    assert [barrier.n_waiting for barrier in barriers] == [0] * N


def test_reset_raises_in_present_waits_and_leaves_the_barrier_usable(barriers):
    waiting = Waiting(barriers[:-1], seen_from=barriers[-1])
    barriers[-1].reset()
    assert all(isinstance(error, Broken) for error in waiting.ends())
    assert [barrier.broken for barrier in barriers] == [False] * N
    assert [barrier.n_waiting for barrier in barriers] == [0] * N
    for _ in range(3):
        assert all_pass(barriers)


def test_reset_without_waiting_trainers_changes_nothing(barriers):
    for barrier in barriers:
        barrier.reset()
        assert (barrier.n_waiting, barrier.broken) == (0, False)
    assert all_pass(barriers)


@pytest.mark.parametrize("by", range(N))
def test_abort_and_a_reset_by_any_trainer_leave_it_usable(barriers, by):
    waiting = Waiting(barriers[:-1], seen_from=barriers[-1])
    barriers[-1].abort()
    assert all(isinstance(error, Broken) for error in waiting.ends())
    barriers[by].reset()
    assert (barriers[by].n_waiting, barriers[by].broken) == (0, False)
    for _ in range(2):
        assert all_pass(barriers)


def test_abort_and_reset_do_not_run_the_action(acting, hook):
    runs = []
    hook.do = lambda: runs.append(1)
    acting[0].abort()
    assert_broken(acting)
    acting[0].reset()
    assert runs == []
    assert all_pass(acting)
    assert runs == [1]


def test_a_wait_that_times_out_breaks_the_waits_of_the_others(barriers):
    waiting = Waiting(barriers[:1], seen_from=barriers[1])
    start = time.monotonic()
    with pytest.raises(Broken):
        barriers[1].wait(SOON)
    assert SOON <= time.monotonic() - start < SOON + PROMPT
    (error,) = waiting.ends()
    assert isinstance(error, Broken)
    assert_broken(barriers)  # also for the trainer that arrives only now
    barriers[0].reset()
    for _ in range(2):
        assert all_pass(barriers)


def test_a_timeout_of_0_breaks_it_immediately(barriers):
    start = time.monotonic()
    with pytest.raises(Broken):
        barriers[0].wait(0)
    assert time.monotonic() - start < PROMPT
    assert_broken(barriers)


def test_the_last_to_arrive_passes_with_any_timeout(barriers):
    waiting = Waiting(barriers[:-1], seen_from=barriers[-1])
    numbers = [barriers[-1].wait(0), *waiting.ends()]
    assert sorted(numbers) == list(range(N))
    assert not barriers[0].broken


def test_the_timeout_of_the_barrier_is_the_default_of_its_waits(make):
    barriers = make("default", timeout=SOON)
    for arguments in ((), (None,)):
        start = time.monotonic()
        with pytest.raises(Broken):
            barriers[0].wait(*arguments)
        assert SOON <= time.monotonic() - start < SOON + PROMPT
        assert_broken(barriers)
        barriers[0].reset()
    assert all_pass(barriers)  # these waits have timeouts of their own
    waiting = Waiting(barriers[:1], seen_from=barriers[1])
    errors = together(lambda rank, barrier: barrier.wait(), barriers[1:2])
    errors += waiting.ends()
    assert all(isinstance(error, Broken) for error in errors)
