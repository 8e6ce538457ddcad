"""Verdicts: on evidence recorded from the cases of the lab, and rule by rule."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs_seen import AT, ENDED, MAIN, PS, SITE, WAITS, at, job, stands
from tfdist.diagnosis.evidence import (
    BarrierEvidence,
    Evidence,
    Frame,
    Place,
    Stack,
    State,
    TaskEvidence,
    place_of,
)
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.verdict import Confidence, Name
from tfdist.repro.matrix import CASES, find

RECORDED = sorted((Path(__file__).parent / "evidence").glob("*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_evidence_has_the_verdict_of_its_case(path):
    case = find(path.stem.replace("--", "/"))
    evidence = Evidence.parse(path.read_text("utf-8"))
    assert diagnose(evidence).name in case.expects
    assert Evidence.parse(evidence.to_json()) == evidence


def test_each_case_has_a_record():
    assert {path.stem.replace("--", "/") for path in RECORDED} == {case.name for case in CASES}


@pytest.mark.parametrize("place", list(AT))
def test_a_frame_identifies_a_place(place):
    assert place_of(stands(place)) is place


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (Place.BARRIER, Place.RUN),
        (Place.STARTING, Place.RUN),
        (Place.CONNECTING, Place.PYTHON),
        (Place.EXTENDING, Place.STARTING),
        (Place.CLOSING, Place.STARTING),
    ],
)
def test_the_place_that_says_more_counts(outer, inner):
    assert place_of(Stack(stands(inner).frames + stands(outer).frames)) is outer
    assert place_of(Stack(stands(outer).frames + stands(inner).frames)) is outer


SCHEDULED = Stack((Frame(SITE + AT[Place.JOIN][0], 1, "execute_on"),), count=2)


@pytest.mark.parametrize(
    ("evidence", "name", "culprits"),
    [
        (job(WAITS, ENDED), Name.STRANDED_AT_BARRIER, ["worker:1"]),
        (job(at(Place.EAGER), at(Place.PYTHON, "worker:1", left=True)),
         Name.STRANDED_AT_BARRIER, ["worker:1"]),
        (job(WAITS, replace(ENDED, state=State.DEAD)), Name.PEER_DEAD, ["worker:1"]),
        (job(WAITS, replace(ENDED, state=State.FAILED)), Name.PEER_DEAD, ["worker:1"]),
        (job(WAITS, replace(ENDED, state=State.STOPPED)), Name.PEER_STOPPED, ["worker:1"]),
        (job(at(Place.CLOSING), ENDED), Name.DEAD_DEPENDENCY, ["worker:1"]),
        (job(at(Place.EXTENDING), replace(ENDED, state=State.DEAD)),
         Name.DEAD_DEPENDENCY, ["worker:1"]),
        (job(WAITS, at(Place.INPUT, "worker:1")), Name.INPUT_STALLED, ["worker:1"]),
        (job(WAITS, replace(WAITS, name="worker:1", waits={"wait_for_partner": 1})),
         Name.INPUT_STALLED, ["worker:1"]),
        (job(WAITS, replace(WAITS, name="worker:1")), Name.DEADLOCK, ["worker:0", "worker:1"]),
        (job(WAITS, replace(WAITS, name="worker:1", works=True)), Name.SLOW, ["worker:1"]),
        (job(WAITS, at(Place.PYTHON, "worker:1")), Name.SLOW, ["worker:1"]),
        (job(WAITS, at(Place.IMPORT, "worker:1"), seconds=5.0), Name.SLOW_START, ["worker:1"]),
        (job(WAITS, at(Place.WAIT, "worker:1")), Name.STUCK_IN_CALL, ["worker:1"]),
        (job(TaskEvidence("worker:0", state=State.ABSENT), at(Place.STARTING, "worker:1")),
         Name.NOT_INITIALIZED, ["worker:0"]),
        (job(at(Place.RUN, steps=3), at(Place.STARTING, "worker:1", quiet_secs=5.0)),
         Name.SLOW_START, ["worker:1"]),
        (job(at(Place.RUN, steps=3),
             at(Place.STARTING, "worker:1", quiet_secs=60.0, works=True), works=True),
         Name.NOT_INITIALIZED, ["worker:1"]),
        (job(at(Place.STOPPING, quiet_secs=20.0)), Name.SLOW_EXIT, ["worker:0"]),
        (job(at(Place.STOPPING, quiet_secs=200.0)), Name.UNKNOWN, ["worker:0"]),
        (job(at(Place.STOPPING), replace(WAITS, name="worker:1")),
         Name.UNKNOWN, ["worker:0", "worker:1"]),
        (job(WAITS, TaskEvidence("worker:1", state=State.ABSENT)), Name.UNKNOWN, ["worker:0"]),
        (job(at(Place.SERVER, left=True), ENDED), Name.UNKNOWN, []),
        (Evidence((replace(PS, state=State.ENDED), WAITS)), Name.DEAD_DEPENDENCY, ["ps:0"]),
        (job(WAITS, works=True), Name.SLOW, ["ps:0"]),
        (job(replace(WAITS, works=True), at(Place.STARTING, "worker:1", quiet_secs=60.0)),
         Name.SLOW, ["worker:0"]),
        (job(at(Place.WAIT), ENDED), Name.STUCK_IN_CALL, ["worker:0"]),
        (job(at(Place.INPUT, left=True), replace(WAITS, name="worker:1")),
         Name.STRANDED_AT_BARRIER, ["worker:0"]),
        (job(at(Place.CLOSING, quiet_secs=5.0), replace(ENDED, state=State.DEAD)),
         Name.SLOW_EXIT, ["worker:0"]),
        # Threads are exhausted only if several servers share fewer threads than are blocked.
        *[(job(TaskEvidence("worker:0", stacks=(stands(Place.JOIN), SCHEDULED), **threads)),
           name, ["worker:0"])
          for threads, name in (({"servers": 3, "pool": 2}, Name.THREADS_EXHAUSTED),
                                ({"servers": 1, "pool": 2}, Name.DEADLOCK),
                                ({"servers": 3, "pool": 3}, Name.DEADLOCK),
                                ({"servers": 3}, Name.DEADLOCK))],
        (job(at(Place.CONNECTING)), Name.SLOW_START, ["worker:0"]),
        (Evidence((replace(PS, state=State.DEAD), at(Place.CONNECTING))), Name.PEER_DEAD, ["ps:0"]),
        # A trainer that waits for the chief cannot make progress, in a session of tfdist either.
        (job(at(Place.STARTING, "worker:1"), at(Place.RUN, state=State.STOPPED), works=True),
         Name.PEER_STOPPED, ["worker:0"]),
        (job(TaskEvidence("worker:1", stacks=(Stack(
            (Frame("/x/python3.11/threading.py", 1, "wait"),
             Frame("/x/tfdist/train/graph.py", 9, "_wait_until_ready"), MAIN), main=True),)),
             at(Place.RUN, state=State.STOPPED)), Name.PEER_STOPPED, ["worker:0"]),
        # The cause is the task at one end of each connection without acknowledgement.
        (job(replace(WAITS, unanswered=("worker:2",)), at(Place.RUN, "worker:1"),
             at(Place.RUN, "worker:2", unanswered=("ps:0",))),
         Name.PEER_UNREACHABLE, ["worker:2"]),
        (job(replace(WAITS, unanswered=("ps:0",)), at(Place.RUN, "worker:1")),
         Name.PEER_UNREACHABLE, ["ps:0", "worker:0"]),
        (job(replace(WAITS, unanswered=("10.0.0.9:2222",)), at(Place.RUN, "worker:1")),
         Name.PEER_UNREACHABLE, ["worker:0"]),
        (job(replace(WAITS, unanswered=("ps:0",)), at(Place.PYTHON, "worker:1")),
         Name.SLOW, ["worker:1"]),
        # A long message arrives bit by bit: the link or the receiver is slow.
        (job(at(Place.EXTENDING, sends_to=("ps:0",)), at(Place.EXTENDING, "worker:1")),
         Name.SLOW, ["worker:0"]),
        (Evidence((replace(PS, sends_to=("worker:0",)), WAITS)), Name.SLOW, ["ps:0"]),
        (job(replace(WAITS, sends_to=("ps:0",)), replace(WAITS, name="worker:1", works=True)),
         Name.SLOW, ["worker:0"]),
        (job(replace(WAITS, sends_to=("10.0.0.9:2222",)), at(Place.RUN, "worker:1")),
         Name.SLOW, ["worker:0"]),
        (job(replace(WAITS, sends_to=("ps:0",)), replace(ENDED, state=State.DEAD)),
         Name.SLOW, ["worker:0"]),
        # The kernel of a stopped task accepts as much as its buffer holds.
        (job(replace(WAITS, sends_to=("worker:1",)),
             at(Place.RUN, "worker:1", state=State.STOPPED)),
         Name.PEER_STOPPED, ["worker:1"]),
        # Lost tasks are not the cause while a live task can make progress.
        *[(job(busy, replace(ENDED, state=state)), Name.SLOW, ["worker:0"])
          for busy in (at(Place.PYTHON), at(Place.RUN, works=True))
          for state in (State.STOPPED, State.DEAD, State.FAILED)],
        # Autotuning may delay the close of a session, unless a ps is lost.
        (job(at(Place.CLOSING, quiet_secs=5.0)), Name.SLOW_EXIT, ["worker:0"]),
        *[(Evidence((replace(PS, state=state), at(Place.CLOSING, quiet_secs=5.0))), name, ["ps:0"])
          for state, name in ((State.STOPPED, Name.PEER_STOPPED),
                              (State.DEAD, Name.DEAD_DEPENDENCY),
                              (State.FAILED, Name.DEAD_DEPENDENCY))],
        (job(at(Place.EXTENDING), at(Place.STARTING, "worker:1", quiet_secs=60.0)),
         Name.DEAD_DEPENDENCY, ["worker:0"]),
        *[(job(at(place, steps=0), at(Place.STARTING, "worker:1", quiet_secs=60.0)),
           Name.NOT_INITIALIZED, ["worker:0"])
          for place in (Place.SERVER, Place.WAIT)],
        (job(at(Place.IMPORT, steps=0), at(Place.STARTING, "worker:1", quiet_secs=60.0),
             seconds=70.0), Name.SLOW, ["worker:0"]),
    ],
    ids=lambda value: value.value if isinstance(value, Name) else "",
)  # fmt: skip
def test_the_verdict_on_a_stalled_job(evidence, name, culprits):
    verdict = diagnose(evidence)
    assert (verdict.name, list(verdict.culprits)) == (name, culprits)
    assert verdict.because
    assert verdict.would_help or verdict.confidence is Confidence.CERTAIN


def test_a_barrier_that_misses_the_task_makes_the_verdict_certain():
    barrier = BarrierEvidence("epoch_end", ("worker:0",), ("worker:1",))
    verdict = diagnose(job(at(Place.BARRIER), ENDED, barriers=(barrier,)))
    assert (verdict.name, verdict.confidence) == (Name.STRANDED_AT_BARRIER, Confidence.CERTAIN)
    assert any("'epoch_end'" in reason for reason in verdict.because)


def test_the_verdict_on_a_stalled_job_names_the_barriers_at_which_trainers_wait():
    barriers = (
        BarrierEvidence("end", ("worker:1",), ("worker:0",)),
        BarrierEvidence("x", (), ("a",)),
    )
    verdict = diagnose(job(WAITS, at(Place.BARRIER, "worker:1"), barriers=barriers))
    assert (verdict.name, verdict.because[-1]) == (
        Name.DEADLOCK,
        "barrier 'end' waits for worker:0",
    )
    assert not any("'x'" in reason for reason in verdict.because)


WELL = tuple(TaskEvidence(f"worker:{n}", state=State.ENDED, ended_secs=1.0) for n in range(2))


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        (Evidence(WELL, over=True, expected=4), Name.FINE),
        (Evidence(WELL, over=True), Name.FINE),
        (Evidence(WELL, over=True, expected=4, missing=((2, 4),)), Name.SILENT_TRUNCATION),
        (Evidence(WELL, over=True, expected=4, duplicates=((2, 4),)), Name.DUPLICATES),
        (Evidence(WELL, over=True, expected=4, step=9, saved_step=3), Name.SAVED_TOO_EARLY),
        (Evidence(WELL, over=True, expected=4, step=9, saved_step=9), Name.FINE),
        (Evidence(WELL, over=True, expected=4, step=9), Name.FINE),
        (Evidence(WELL, over=True, expected=4, saved_step=9), Name.FINE),
        (Evidence((WELL[0], replace(WELL[1], state=State.FAILED, error="ValueError: x")),
                  over=True, expected=4), Name.TASK_FAILED),
        (Evidence((WELL[0], replace(WELL[1], state=State.DEAD)), over=True, expected=4,
                  missing=((2, 4),)), Name.PEER_DEAD),
        (Evidence((WELL[0], replace(WELL[1], state=State.DEAD)), over=True, expected=4),
         Name.FINE),
        (Evidence((WELL[0], replace(WELL[1], state=State.STOPPED)), over=True, expected=4,
                  missing=((2, 4),)), Name.PEER_STOPPED),
    ],
)  # fmt: skip
def test_the_verdict_on_a_job_that_has_ended(evidence, name):
    assert diagnose(evidence).name is name


@pytest.mark.parametrize(
    ("ago", "name"), [(5.0, Name.PEER_DEAD), (2.0, Name.TASK_FAILED)], ids=["before", "after"]
)
def test_a_task_killed_before_another_one_fails_is_the_cause(ago, name):
    failed = replace(WELL[0], state=State.FAILED, ended_secs=3.0)
    killed = replace(WELL[1], state=State.DEAD, ended_secs=ago)
    assert diagnose(Evidence((failed, killed), over=True)).name is name


def test_the_chief_is_the_cause_of_an_early_checkpoint():
    verdict = diagnose(job(*WELL, over=True, step=9, saved_step=3))
    assert (verdict.name, verdict.culprits) == (Name.SAVED_TOO_EARLY, ("worker:0",))


def test_a_barrier_that_misses_another_task_proves_nothing():
    barrier = BarrierEvidence("other", ("worker:0",), ("worker:7",))
    verdict = diagnose(job(at(Place.BARRIER), ENDED, barriers=(barrier,)))
    assert (verdict.name, verdict.confidence) == (Name.STRANDED_AT_BARRIER, Confidence.LIKELY)
    assert not any("'other'" in reason for reason in verdict.because)


def test_an_unknown_verdict_names_the_call_of_each_task():
    absent = TaskEvidence("worker:1", state=State.ABSENT)
    call = "_call_tf_sessionrun (session.py:1), called by <module> (train.py:10)"
    assert diagnose(job(WAITS, absent)).because == (f"worker:0 is in Session.run: {call}",)
    assert diagnose(Evidence(())).because == ("no trainer was seen that still has work to do",)


def test_the_verdict_on_one_task_alone_does_not_name_the_task_that_it_waits_for():
    verdict = diagnose(Evidence((WAITS,), whole=False))
    assert (verdict.name, verdict.confidence) == (Name.UNKNOWN, Confidence.GUESS)
    assert "other tasks" in verdict.would_help
    stalled = diagnose(Evidence((at(Place.INPUT),), whole=False))
    assert stalled.name is Name.INPUT_STALLED


@pytest.mark.parametrize(
    ("chief", "culprit", "reason", "confidence"),
    [
        (at(Place.SERVER, steps=0), "worker:0", "which has to initialize", Confidence.LIKELY),
        (at(Place.SERVER, steps=3), "worker:1", "has done 3 steps", Confidence.LIKELY),
        (at(Place.RUN, steps=3), "worker:1", "has done 3 steps", Confidence.LIKELY),
        (at(Place.RUN, steps=0), "worker:1", "is in Session.run", Confidence.GUESS),
        (replace(ENDED, name="worker:0"), "worker:1", "has ended", Confidence.LIKELY),
    ],
)
def test_the_chief_explains_why_variables_are_not_initialized(chief, culprit, reason, confidence):
    verdict = diagnose(job(chief, at(Place.STARTING, "worker:1", quiet_secs=60.0)))
    assert (verdict.name, verdict.culprits) == (Name.NOT_INITIALIZED, (culprit,))
    assert reason in verdict.because[-1]
    assert verdict.confidence is confidence


@pytest.mark.parametrize("state", [State.STOPPED, State.DEAD, State.FAILED])
def test_the_verdict_on_a_slow_job_names_the_lost_tasks(state):
    verdict = diagnose(job(at(Place.PYTHON), replace(ENDED, state=state)))
    how = "failed" if state is State.FAILED else state.value
    assert f"worker:1 {how} 3 s ago" in verdict.because
    assert len(diagnose(job(at(Place.PYTHON), replace(WAITS, name="worker:1"))).because) == 1


def test_the_verdict_counts_the_functions_that_a_coordinator_has_scheduled():
    path = next(path for path in RECORDED if path.stem == "coordinator--blocking-barrier")
    because = diagnose(Evidence.parse(path.read_text("utf-8"))).because
    assert any("functions that chief:0 scheduled are running" in reason for reason in because)


def test_at_most_five_ranges_of_missing_examples_are_shown():
    lost, missing = replace(WELL[1], state=State.DEAD), [(n, n + 1) for n in range(0, 14, 2)]
    verdict = diagnose(Evidence((WELL[0], lost), over=True, expected=14, missing=tuple(missing)))
    assert verdict.because[-1] == "no task read the examples 0, 2, 4, 6, 8, and 2 more ranges"
    verdict = diagnose(
        Evidence((WELL[0], lost), over=True, expected=14, missing=tuple(missing[:5]))
    )
    assert verdict.because[-1] == "no task read the examples 0, 2, 4, 6, 8"
    not_counted = diagnose(Evidence((WELL[0], lost), over=True))
    assert (not_counted.name, len(not_counted.because)) == (Name.PEER_DEAD, 1)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (at(Place.RUN, state=State.STOPPED), Name.PEER_STOPPED),
        (at(Place.RUN, works=True), Name.SLOW),
        (at(Place.EXTENDING, sends_to=("10.0.0.9:2222",)), Name.SLOW),
        (at(Place.RUN, unanswered=("10.0.0.9:2222",)), Name.PEER_UNREACHABLE),
        (at(Place.CLOSING), Name.DEAD_DEPENDENCY),
        (at(Place.CONNECTING), Name.SLOW_START),
        (at(Place.STOPPING), Name.SLOW_EXIT),
        (TaskEvidence("worker:0", stacks=(stands(Place.JOIN), SCHEDULED), servers=3, pool=2),
         Name.THREADS_EXHAUSTED),
    ],
)  # fmt: skip
def test_the_verdict_on_one_task_alone(task, name):
    assert diagnose(Evidence((task,), whole=False)).name is name


def test_a_deadlock_before_the_first_step_points_to_the_placement_of_the_queue():
    others = [at(Place.RUN, f"worker:{n}", steps=0) for n in range(2)]
    assert "a queue is shared only" in diagnose(job(*others)).would_help
    others[1] = replace(others[1], steps=1)
    assert "a queue is shared only" not in diagnose(job(*others)).would_help


def test_fine_is_certain_only_if_the_examples_were_counted():
    counted, not_counted = Evidence(WELL, over=True, expected=4), Evidence(WELL, over=True)
    assert diagnose(counted).confidence is Confidence.CERTAIN
    verdict = diagnose(not_counted)
    assert verdict.confidence is Confidence.LIKELY
    assert verdict.because == (
        "no error was seen; tfdist does not know whether all examples were read",
    )
    assert verdict.advice.startswith("compare the number of examples")


def test_a_task_that_tfdist_terminated_is_not_the_cause():
    ended = replace(ENDED, state=State.TERMINATED, exit_code=-15)
    tasks = (replace(ended, name="worker:0"), ended)
    verdict = diagnose(Evidence((PS, *tasks), over=True))
    assert verdict.heading == "UNKNOWN, tasks: worker:0, worker:1 (a guess)"
    assert verdict.because[0] == "worker:0 was terminated by tfdist"
    assert "--stall-timeout" in verdict.advice
    killed = replace(ENDED, name="worker:2", state=State.DEAD)
    verdict = diagnose(Evidence((PS, *tasks, killed), over=True))
    assert verdict.heading == "PEER_DEAD, cause: worker:2 (certain)"
    assert verdict.because == ("worker:2 was killed",)


def test_a_job_that_ended_before_a_trainer_started_is_not_fine():
    absent = TaskEvidence("worker:1", state=State.ABSENT)
    verdict = diagnose(Evidence((WELL[0], absent), over=True))
    assert (verdict.name, verdict.culprits) == (Name.UNKNOWN, ("worker:1",))
    assert verdict.because == ("worker:1 has not started",)


def test_the_exit_code_of_a_missing_trainer_is_told_if_it_is_known():
    verdict = diagnose(job(WAITS, replace(ENDED, exit_code=0)))
    assert verdict.because[0] == "worker:1 exited 3 s ago with code 0"


def test_each_verdict_has_advice():
    assert all(name.advice for name in Name)


def test_a_verdict_as_text():
    verdict = diagnose(job(WAITS, ENDED))
    ends = "worker:1 ended 3 s ago"
    call = "_call_tf_sessionrun (session.py:1), called by <module> (train.py:10)"
    waits = f"worker:0 is in Session.run: {call}"
    heading = "STRANDED_AT_BARRIER, cause: worker:1 (likely)"
    assert str(verdict) == f"{heading}: {ends}; {waits}"
    first, *because, more, advice = verdict.lines()
    assert (first, because) == (f"verdict: {heading}", [f"  {ends}", f"  {waits}"])
    assert more.startswith("to be more certain: ")
    assert advice.startswith("what to do: ")


def test_a_verdict_without_a_cause_names_the_tasks_as_such():
    alone = Evidence((WAITS,), whole=False)
    assert diagnose(alone).heading == "UNKNOWN, task: worker:0 (a guess)"
    slow = diagnose(job(WAITS, at(Place.PYTHON, "worker:1")))
    assert slow.heading == "SLOW, task: worker:1 (likely)"


def test_each_verdict_is_explained_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "hang.md").read_text("utf-8")
    assert [name for name in Name if f"\n| `{name.value}` |" not in page] == []
