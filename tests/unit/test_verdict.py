"""Verdicts: on evidence that was recorded from the cases of the lab, and rule by rule."""

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
def test_the_verdict_on_what_was_recorded_is_that_of_the_case(path):
    case = find(path.stem.replace("--", "/"))
    evidence = Evidence.parse(path.read_text("utf-8"))
    assert diagnose(evidence).name in case.expects
    assert Evidence.parse(evidence.to_json()) == evidence


def test_there_is_a_record_of_each_case():
    assert {path.stem.replace("--", "/") for path in RECORDED} == {case.name for case in CASES}


@pytest.mark.parametrize("place", list(AT))
def test_a_place_is_told_by_its_frame(place):
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
def test_of_two_places_the_one_that_says_more_counts(outer, inner):
    assert place_of(Stack(stands(inner).frames + stands(outer).frames)) is outer
    assert place_of(Stack(stands(outer).frames + stands(inner).frames)) is outer


SCHEDULED = Stack((Frame(SITE + "cluster_coordinator.py", 1, "execute_on"),), count=2)


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
        (job(WAITS, at(Place.WAIT, "worker:1")), Name.UNKNOWN, ["worker:0", "worker:1"]),
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
        (job(at(Place.WAIT), ENDED), Name.UNKNOWN, ["worker:0"]),
        (job(at(Place.INPUT, left=True), replace(WAITS, name="worker:1")),
         Name.STRANDED_AT_BARRIER, ["worker:0"]),
        (job(at(Place.CLOSING, quiet_secs=5.0), replace(ENDED, state=State.DEAD)),
         Name.SLOW_EXIT, ["worker:0"]),
        # Threads are short only where several servers share fewer than they block.
        *[(job(TaskEvidence("worker:0", stacks=(stands(Place.JOIN), SCHEDULED), **threads)),
           name, ["worker:0"])
          for threads, name in (({"servers": 3, "pool": 2}, Name.THREADS_EXHAUSTED),
                                ({"servers": 1, "pool": 2}, Name.DEADLOCK),
                                ({"servers": 3, "pool": 3}, Name.DEADLOCK),
                                ({"servers": 3}, Name.DEADLOCK))],
        (job(at(Place.CONNECTING)), Name.SLOW_START, ["worker:0"]),
        (Evidence((replace(PS, state=State.DEAD), at(Place.CONNECTING))), Name.PEER_DEAD, ["ps:0"]),
        # Who waits for the chief has nothing to do without it, in a session of tfdist either.
        (job(at(Place.STARTING, "worker:1"), at(Place.RUN, state=State.STOPPED), works=True),
         Name.PEER_STOPPED, ["worker:0"]),
        (job(TaskEvidence("worker:1", stacks=(Stack(
            (Frame("/x/python3.11/threading.py", 1, "wait"),
             Frame("/x/tfdist/train/graph.py", 9, "_wait_until_ready"), MAIN), main=True),)),
             at(Place.RUN, state=State.STOPPED)), Name.PEER_STOPPED, ["worker:0"]),
        # Who is at one end of each connection that is not acknowledged.
        (job(replace(WAITS, unanswered=("worker:2",)), at(Place.RUN, "worker:1"),
             at(Place.RUN, "worker:2", unanswered=("ps:0",))),
         Name.PEER_UNREACHABLE, ["worker:2"]),
        (job(replace(WAITS, unanswered=("ps:0",)), at(Place.RUN, "worker:1")),
         Name.PEER_UNREACHABLE, ["ps:0", "worker:0"]),
        (job(replace(WAITS, unanswered=("10.0.0.9:2222",)), at(Place.RUN, "worker:1")),
         Name.PEER_UNREACHABLE, ["worker:0"]),
        (job(replace(WAITS, unanswered=("ps:0",)), at(Place.PYTHON, "worker:1")),
         Name.SLOW, ["worker:1"]),
        # A long message goes to somebody bit by bit: the link is slow, or who takes it.
        (job(at(Place.EXTENDING, sends_to=("ps:0",)), at(Place.EXTENDING, "worker:1")),
         Name.SLOW, ["worker:0"]),
        (Evidence((replace(PS, sends_to=("worker:0",)), WAITS)), Name.SLOW, ["ps:0"]),
        (job(replace(WAITS, sends_to=("ps:0",)), replace(WAITS, name="worker:1", works=True)),
         Name.SLOW, ["worker:0"]),
        (job(replace(WAITS, sends_to=("10.0.0.9:2222",)), at(Place.RUN, "worker:1")),
         Name.SLOW, ["worker:0"]),
        (job(replace(WAITS, sends_to=("ps:0",)), replace(ENDED, state=State.DEAD)),
         Name.SLOW, ["worker:0"]),
        # The kernel of one that is stopped takes what it has room for.
        (job(replace(WAITS, sends_to=("worker:1",)),
             at(Place.RUN, "worker:1", state=State.STOPPED)),
         Name.PEER_STOPPED, ["worker:1"]),
        # Those that are missing are not the cause where somebody has something to do.
        *[(job(busy, replace(ENDED, state=state)), Name.SLOW, ["worker:0"])
          for busy in (at(Place.PYTHON), at(Place.RUN, works=True))
          for state in (State.STOPPED, State.DEAD, State.FAILED)],
        # A session that tunes its input may take long to close, but not where a ps is missing.
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
def test_a_job_that_stands_still(evidence, name, culprits):
    verdict = diagnose(evidence)
    assert (verdict.name, list(verdict.culprits)) == (name, culprits)
    assert verdict.because
    assert verdict.would_help or verdict.confidence is Confidence.CERTAIN


def test_a_barrier_whose_name_is_known_makes_it_certain():
    barrier = BarrierEvidence("epoch_end", ("worker:0",), ("worker:1",))
    verdict = diagnose(job(at(Place.BARRIER), ENDED, barriers=(barrier,)))
    assert (verdict.name, verdict.confidence) == (Name.STRANDED_AT_BARRIER, Confidence.CERTAIN)
    assert any("'epoch_end'" in reason for reason in verdict.because)


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
def test_a_job_that_is_over(evidence, name):
    assert diagnose(evidence).name is name


@pytest.mark.parametrize(
    ("ago", "name"), [(5.0, Name.PEER_DEAD), (2.0, Name.TASK_FAILED)], ids=["before", "after"]
)
def test_a_task_that_was_killed_before_one_fails_is_the_cause(ago, name):
    failed = replace(WELL[0], state=State.FAILED, ended_secs=3.0)
    killed = replace(WELL[1], state=State.DEAD, ended_secs=ago)
    assert diagnose(Evidence((failed, killed), over=True)).name is name


def test_who_saves_is_the_chief():
    verdict = diagnose(job(*WELL, over=True, step=9, saved_step=3))
    assert (verdict.name, verdict.culprits) == (Name.SAVED_TOO_EARLY, ("worker:0",))


def test_a_barrier_at_which_somebody_else_is_missing_is_no_proof():
    barrier = BarrierEvidence("other", ("worker:0",), ("worker:7",))
    verdict = diagnose(job(at(Place.BARRIER), ENDED, barriers=(barrier,)))
    assert (verdict.name, verdict.confidence) == (Name.STRANDED_AT_BARRIER, Confidence.LIKELY)
    assert not any("'other'" in reason for reason in verdict.because)


def test_where_nothing_is_known_it_is_said_where_each_stands():
    assert diagnose(job(at(Place.WAIT))).because == (
        "worker:0 waits, outside of TensorFlow, wait (threading.py:1)",
    )
    assert diagnose(Evidence(())).because == ("nothing was seen of any task",)


def test_of_one_task_alone_it_is_not_said_for_whom_it_waits():
    verdict = diagnose(Evidence((WAITS,), whole=False))
    assert (verdict.name, verdict.confidence) == (Name.UNKNOWN, Confidence.GUESS)
    assert "other tasks" in verdict.would_help
    stalled = diagnose(Evidence((at(Place.INPUT),), whole=False))
    assert stalled.name is Name.INPUT_STALLED


@pytest.mark.parametrize(
    ("chief", "culprit", "reason", "confidence"),
    [
        (at(Place.SERVER, steps=0), "worker:0", "which has to initialise", Confidence.LIKELY),
        (at(Place.SERVER, steps=3), "worker:1", "has done 3 steps", Confidence.LIKELY),
        (at(Place.RUN, steps=3), "worker:1", "has done 3 steps", Confidence.LIKELY),
        (at(Place.RUN, steps=0), "worker:1", "in a run of the graph", Confidence.GUESS),
        (replace(ENDED, name="worker:0"), "worker:1", "has ended", Confidence.LIKELY),
    ],
)
def test_who_is_not_initialised_is_told_by_what_the_chief_does(chief, culprit, reason, confidence):
    verdict = diagnose(job(chief, at(Place.STARTING, "worker:1", quiet_secs=60.0)))
    assert (verdict.name, verdict.culprits) == (Name.NOT_INITIALIZED, (culprit,))
    assert reason in verdict.because[-1]
    assert verdict.confidence is confidence


@pytest.mark.parametrize("state", [State.STOPPED, State.DEAD, State.FAILED])
def test_where_it_is_only_slow_it_is_said_who_is_missing(state):
    verdict = diagnose(job(at(Place.PYTHON), replace(ENDED, state=state)))
    assert f"worker:1 {state.value} 3 s ago" in verdict.because
    assert len(diagnose(job(at(Place.PYTHON), replace(WAITS, name="worker:1"))).because) == 1


def test_how_many_functions_of_a_coordinator_run_is_said():
    path = next(path for path in RECORDED if path.stem == "coordinator--blocking-barrier")
    because = diagnose(Evidence.parse(path.read_text("utf-8"))).because
    assert any("functions that chief:0 has scheduled run" in reason for reason in because)


def test_what_a_lost_task_has_left_is_said_with_five_ranges_at_most():
    lost, missing = replace(WELL[1], state=State.DEAD), [(n, n + 1) for n in range(0, 14, 2)]
    told = diagnose(Evidence((WELL[0], lost), over=True, expected=14, missing=tuple(missing)))
    assert told.because[-1] == "nobody read 0, 2, 4, 6, 8, and 2 ranges more"
    told = diagnose(Evidence((WELL[0], lost), over=True, expected=14, missing=tuple(missing[:5])))
    assert told.because[-1] == "nobody read 0, 2, 4, 6, 8"
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
def test_of_one_task_alone_what_it_does_itself_is_said(task, name):
    assert diagnose(Evidence((task,), whole=False)).name is name


def test_who_has_not_done_a_step_is_pointed_to_the_place_of_its_queue():
    others = [at(Place.RUN, f"worker:{n}", steps=0) for n in range(2)]
    assert "a queue is shared only" in diagnose(job(*others)).would_help
    others[1] = replace(others[1], steps=1)
    assert "a queue is shared only" not in diagnose(job(*others)).would_help


def test_that_all_is_well_is_certain_only_where_the_examples_were_counted():
    counted, not_counted = Evidence(WELL, over=True, expected=4), Evidence(WELL, over=True)
    assert diagnose(counted).confidence is Confidence.CERTAIN
    assert diagnose(not_counted).confidence is Confidence.LIKELY


def test_each_name_has_advice():
    assert all(name.advice for name in Name)


def test_a_verdict_reads_as_one_line():
    text = str(diagnose(job(WAITS, ENDED)))
    assert text.startswith("STRANDED_AT_BARRIER (worker:1): worker:1 has ended 3 s ago; ")
    assert text.endswith("[likely]")
    assert "\n" not in text
