"""Evidence of jobs as a collector would see them, made by hand, and a report of one."""

from dataclasses import replace

from tfdist.diagnosis.evidence import Evidence, Frame, Place, Stack, State, TaskEvidence
from tfdist.diagnosis.page import Event, Report, Track
from tfdist.diagnosis.rules import diagnose
from tfdist.runs import events as notes

SITE = "/lib/site-packages/"

# The frame that identifies each place.
AT = {
    Place.RUN: ("tensorflow/python/client/session.py", "_call_tf_sessionrun"),
    Place.CLOSING: ("tensorflow/python/client/session.py", "close"),
    Place.EXTENDING: ("tensorflow/python/client/session.py", "_extend_graph"),
    Place.STARTING: ("tensorflow/python/training/session_manager.py", "wait_for_session"),
    Place.CONNECTING: ("tfdist/cluster/server.py", "_wait_for_ps"),
    Place.STOPPING: ("tensorflow/python/training/coordinator.py", "join"),
    Place.INPUT: ("tensorflow/python/ops/gen_dataset_ops.py", "iterator_get_next"),
    Place.EAGER: ("tensorflow/python/eager/execute.py", "quick_execute"),
    Place.JOIN: ("tensorflow/python/distribute/coordinator/cluster_coordinator.py", "join"),
    Place.BARRIER: ("tfdist/barrier/interface.py", "wait"),
    Place.IMPORT: ("<frozen importlib._bootstrap>", "_find_and_load"),
    Place.WAIT: ("python3.11/threading.py", "wait"),
    Place.PYTHON: ("train.py", "evaluate"),
    Place.SERVER: ("tfdist/cluster/server.py", "serve"),
}
MAIN = Frame("/jobs/train.py", 10, "<module>")


def stands(place, main=True):
    file, function = AT[place]
    path = file if file.startswith("<") else SITE + file
    return Stack((Frame(path, 1, function), MAIN), main=main)


def at(place, name="worker:0", **more):
    return TaskEvidence(name, stacks=(stands(place),), **more)


PS = at(Place.SERVER, "ps:0", trains=False)


def job(*tasks, works=False, **more):
    return Evidence((replace(PS, works=works), *tasks), **more)


ENDED = at(Place.RUN, "worker:1", state=State.ENDED, ended_secs=3.0)
WAITS = at(Place.RUN)
EVIDENCE = job(WAITS, ENDED)
TRACKS = (
    Track("ps:0", ((0.0, 9.0),), ()),
    Track("worker:0", ((0.1, 9.0),), (Event(2.0, notes.STEP, "a step, examples 0, 1"),)),
    Track("worker:1", ((0.1, 3.0),), (Event(3.0, notes.FAILED, "failed: <no> & 'none'"),)),
)
REPORT = Report("a <job>", diagnose(EVIDENCE), EVIDENCE, TRACKS, 9.0, "tfdist repro run x")
