"""Barriers whose trainers or ps are killed, stopped, resumed and restarted at the worst moments.

The trainers are processes that follow orders (barrier_jobs), which a crew sends (barrier_crew).
Each has a barrier of both kinds, so that every fault hits both. Before each wait a trainer records
its round in a file that all trainers read, which shows early passes without the barrier.
"""

import functools

import pytest

from tests.chaos import barrier_jobs
from tests.chaos.barrier_crew import LONG, START, Crew
from tests.chaos.barrier_jobs import HALF_A_FILE, KINDS
from tfdist.deadline import Deadline
from tfdist.testing import poll_until

pytestmark = pytest.mark.usefixtures("no_leaks")

N = 3
SHORT = 0.5  # for what is expected to time out
SOON = 0.5  # how long after its timeout a wait may end while the ps is silent
GENERATIONS = 3000
CHIEF, ONE, TWO = NAMES = [f"worker:{rank}" for rank in range(N)]


@pytest.fixture
def start(make_cluster, tmp_path):
    """Starts a crew, which is closed at the end of the test."""
    crews = []

    def start_crew(num=N, **options):
        crews.append(Crew(make_cluster(1, num, backend="processes"), tmp_path, options))
        crews[-1].wait_for_incarnations(1)
        return crews[-1]

    yield start_crew
    for crew in crews:
        crew.close()


def test_a_trainer_killed_before_it_arrives_resumes_its_generation(start):
    crew = start()
    crew.all_pass(round=1)
    crew.kill(ONE)
    waits = [crew.order_wait(name, 2, SHORT) for name in (CHIEF, TWO)]
    for wait in waits:
        wait.times_out(ONE)
    crew.restart(ONE)
    assert crew.ask(ONE, "generation") == 2
    assert crew.ask(ONE, "missing") == [ONE]
    crew.all_pass(round=2)
    crew.all_pass(round=3)
    assert crew.ask(ONE, "generation") == 4


def test_a_trainer_killed_while_it_waits_counts_once(start):
    crew = start()
    crew.all_pass(round=1)
    lost = crew.order_wait(ONE, 2)
    crew.see(CHIEF, n_waiting=1)
    crew.kill(ONE)
    crew.restart(ONE)  # it waits again
    crew.order_wait(CHIEF, 2, SHORT).times_out(TWO)
    assert lost.pending
    crew.all_pass(round=2, names=[CHIEF, TWO])
    lost.passes()
    # Its arrival also counts for trainers that arrive while it is dead.
    lost = crew.order_wait(ONE, 3)
    crew.see(CHIEF, n_waiting=1)
    crew.kill(ONE)
    crew.all_pass(round=3, names=[CHIEF, TWO])
    lost.withdraw()
    crew.restart(ONE)
    assert crew.ask(ONE, "generation") == 4
    crew.order_wait(CHIEF, 4, SHORT).times_out(ONE, TWO)
    crew.all_pass(round=4)
    crew.all_pass(round=5)
    assert crew.ask(ONE, "generation") == 6


def test_a_chief_stopped_in_its_action_and_one_killed_in_it(start):
    crew = start(saves=True)
    folders = [crew.folder / kind for kind in KINDS]
    # Stopped: the others time out, and the barriers are not broken.
    waits = [crew.order_wait(CHIEF, 1), *(crew.order_wait(n, 1, 2 * SHORT) for n in (ONE, TWO))]
    for folder in folders:
        poll_until((folder / "acting").exists, "the chief acts", timeout=LONG)
    crew.stop(CHIEF)
    for folder in folders:
        (folder / "go").touch()
    for wait in waits[1:]:
        wait.times_out(text="all have arrived; worker:0 runs the action")
    waits[1:] = [crew.order_wait(name, 1) for name in (ONE, TWO)]
    crew.wake(CHIEF)
    for wait in waits:
        wait.passes()
    assert crew.ask(CHIEF, "state") == [1, 1.0, 1.0]
    # Killed in the middle of its second save: all get an error, and the first save is restored.
    crew.ask(CHIEF, "hang_in_the_next_save")
    waits = [crew.order_wait(name, 2) for name in NAMES]
    for folder in folders:
        poll_until(lambda folder=folder: half_saved(folder), "half is saved", timeout=LONG)
    assert all(wait.pending for wait in waits)
    crew.kill(CHIEF)
    crew.restart(CHIEF)
    for wait in waits:
        wait.breaks("worker:0 was restarted while its action ran")
    crew.order_wait(TWO, 2).breaks("worker:0 was restarted while its action ran")  # until a reset
    assert all(half_saved(folder) for folder in folders)
    assert crew.ask(CHIEF, "state") == [1, 1.0, 1.0]
    crew.all_reset([TWO])
    crew.all_pass(round=3)
    assert crew.ask(CHIEF, "state") == [2, 2.0, 2.0]


def half_saved(folder):
    return any(path.stat().st_size == HALF_A_FILE for path in (folder / "model").iterdir())


def test_a_trainer_stopped_before_it_arrives_or_while_it_waits_and_resumed(start):
    crew = start()
    crew.all_pass(round=1)
    crew.stop(ONE)
    stopped = crew.order_wait(ONE, 2)
    for wait in [crew.order_wait(name, 2, SHORT) for name in (CHIEF, TWO)]:
        wait.times_out(ONE)
    crew.wake(ONE)
    crew.all_pass(round=2, names=[CHIEF, TWO])
    stopped.passes()
    # While it waits: the others pass this round without it, but not the next.
    stopped = crew.order_wait(ONE, 3)
    crew.see(CHIEF, n_waiting=1)
    crew.stop(ONE)
    crew.all_pass(round=3, names=[CHIEF, TWO])
    waits = [crew.order_wait(name, 4, 2.5) for name in (CHIEF, TWO)]  # longer than one call blocks
    for wait in waits:
        wait.times_out(ONE)
    assert stopped.pending
    crew.wake(ONE)
    stopped.passes()
    crew.all_pass(round=4)
    assert crew.ask(ONE, "generation") == 5


def test_a_replaced_process_that_is_still_alive_counts_nowhere(start):
    crew = start()
    crew.all_pass(round=1)
    zombie = crew.order_wait(ONE, 2)
    crew.see(CHIEF, n_waiting=1)
    crew.stop(ONE)
    again = crew.start_second(ONE)
    wait = crew.order_wait(again, 2)
    crew.order_wait(CHIEF, 2, SHORT).times_out(TWO)  # two trainers have arrived, one of them twice
    assert wait.pending
    crew.all_pass(round=2, names=[CHIEF, TWO])
    wait.passes()
    crew.wake(ONE)
    zombie.breaks("another process has taken the place of worker:1")
    for round in (3, 4):  # of either parity
        crew.order_wait(ONE, round).breaks("another process has taken the place of worker:1")
        assert crew.ask(TWO, "missing") == NAMES
        crew.order_wait(CHIEF, round, SHORT).times_out(ONE, TWO)
        crew.all_pass(round, names=[CHIEF, again, TWO])


def test_a_ps_stopped_while_trainers_wait_and_resumed(start):
    crew = start()
    crew.all_pass(round=1)
    long = crew.order_wait(CHIEF, 2)
    crew.see(TWO, n_waiting=1)
    short = crew.order_wait(ONE, 2, 2 * SHORT)
    crew.see(TWO, n_waiting=2)
    crew.stop("ps:0")
    short.times_out("ps:0", late=SOON)
    for timeout in (0, SHORT, 3.0):
        # One trainer continues its wait; the arrival of the other has got no answer.
        for wait in [crew.order_wait(name, 2, timeout) for name in (ONE, TWO)]:
            wait.times_out("ps:0", late=SOON)
    waits = [long, *(crew.order_wait(name, 2) for name in (ONE, TWO))]
    poll_until(lambda: all(rounds[0].min() == 2 for rounds in crew.rounds), "all wait")
    crew.wake("ps:0")
    for wait in waits:
        wait.passes()
    crew.all_pass(round=3)
    assert crew.ask(ONE, "generation") == 4


def test_a_ps_stopped_and_resumed_while_rounds_pass(start):
    crew = start()
    runs = [crew.order(name, "run", first=1, last=600, timeout=LONG) for name in NAMES]
    for seconds in (0.5, 2.5):  # the second for longer than one call blocks
        goals = [rounds[0].min() + 50 for rounds in crew.rounds]
        for rounds, goal in zip(crew.rounds, goals, strict=True):
            poll_until(
                lambda rounds=rounds, goal=goal: rounds[0].min() > goal,
                "rounds pass",
                timeout=LONG,
            )
        crew.stop("ps:0")
        stopped = Deadline(seconds)
        poll_until(lambda stopped=stopped: stopped.expired, "it was stopped for long enough")
        assert all(run.pending for run in runs)
        crew.wake("ps:0")
    assert [run.answers() for run in runs] == [[[], []]] * N
    assert crew.ask(ONE, "generation") == 601


def test_a_restarted_ps_has_lost_the_barrier_and_releases_no_trainer(start):
    crew = start()
    crew.all_pass(round=1)
    waits = [crew.order_wait(name, 2) for name in (CHIEF, ONE)]
    crew.see(TWO, n_waiting=2)
    crew.kill("ps:0")
    for wait in waits:
        wait.breaks("ps:0 was lost")
    crew.order_wait(TWO, 2, SHORT).breaks("ps:0 was lost")
    crew.restart("ps:0")
    crew.all_reset(NAMES)
    assert crew.ask(ONE, "generation") == 1
    crew.all_pass(round=3)
    # Restarted before one waiting trainer can notice; the others have joined the new ps by then.
    waits = [crew.order_wait(name, 4) for name in (CHIEF, ONE)]
    crew.see(TWO, n_waiting=2)
    crew.stop(CHIEF)
    crew.kill("ps:0")
    crew.restart("ps:0")
    waits[1].breaks("ps:0 was")
    crew.all_reset([ONE, TWO])
    new = [crew.order_wait(name, 5) for name in (ONE, TWO)]
    crew.wake(CHIEF)
    waits[0].breaks("ps:0 was")
    assert all(wait.pending for wait in new)
    crew.all_reset([CHIEF])
    crew.order_wait(CHIEF, 5).passes()
    for wait in new:
        wait.passes()
    assert crew.ask(ONE, "generation") == 2


def test_timeouts_that_race_with_the_release(start, times):
    crew = start(num=2)
    phases = [
        (60 * times, (0.0, 0.008), (0.0, 0.004)),  # both kinds poll
        (20 * times, (0.1, 0.11), (0.03, 0.13)),  # the queue kind times out while it blocks
    ]
    races = [crew.order(name, "race", phases=phases, seed=1) for name in crew.names]
    for pairs in [pairs for race in races for pairs in race.answers(2 * times * LONG)]:
        for pair in pairs:
            timed_out = pair.pop("timed_out")
            assert pair == {"early": 0, "generation": 80 * times + 1}
            assert timed_out > 10  # else it was no race


@pytest.mark.parametrize("stops", [0, 3])
def test_timeouts_that_break_it_race_with_the_release(start, stops, times):
    """In each round all pass, or none does and the barrier is broken; also with a silent ps."""
    crew = start(num=2)
    rounds = 80 * times
    options = {"rounds": rounds, "timeouts": (0.0, 0.02), "delays": (0.0, 0.02), "seed": 1}
    races = [crew.order(name, "race_to_break", **options) for name in crew.names]
    for _ in range(stops):
        crew.stop_for_a_while("ps:0", 2 * SOON)  # longer than a wait lasts without an answer
    one, other = (race.answers(times * LONG) for race in races)
    assert one == other
    for ends in one:
        assert all(passed != broken for passed, broken in ends)
        assert 0 < sum(passed for passed, _ in ends) < rounds  # else it was no race


# TensorFlow keeps something of each run, and more the longer a ps runs (see the limits in
# docs/barrier.md). So the ps with the barrier is compared with one that gets as many other runs, in
# which the trainers wait for each other as often.


@pytest.mark.parametrize("kind", KINDS)
def test_many_generations_grow_no_trainer_and_the_ps_no_more_than_other_runs(
    make_cluster, kind, times
):
    # Polling takes some three times as many calls, so both kinds make equally many.
    generations = times * (GENERATIONS if kind == "queue" else GENERATIONS * 3 // 10)
    job = barrier_jobs.many_generations
    grown = grow(make_cluster, job, kind, times, generations=generations, warm_up=1000)
    for trainer, ps, second, tokens in grown:
        assert tokens == 0
        assert trainer < 2**20
        assert ps < second + 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_many_timeouts_grow_no_trainer_and_the_ps_no_more_than_other_runs(
    make_cluster, kind, times
):
    rounds = times * GENERATIONS // 150
    job = barrier_jobs.many_timeouts
    [trainer, ps, second], _ = grow(make_cluster, job, kind, times, rounds=rounds, timeout=0.13)
    assert trainer < 2**20
    assert ps < second + 2**20


def grow(make_cluster, job, kind, times, **options):
    cluster = make_cluster(2, 2, backend="processes")
    ps = [cluster._running[f"ps:{index}"].pid for index in range(2)]
    job = functools.partial(job, kind=kind, ps=ps, **options)
    return cluster.run(job, timeout=START + times * GENERATIONS / 50)
