"""The report as a page: its content, and that it fetches nothing."""

import os
import re
import tempfile
from dataclasses import replace
from html.parser import HTMLParser

import pytest

import tfdist
from tests.jobs_seen import EVIDENCE, REPORT, at, job
from tfdist.diagnosis.evidence import BarrierEvidence, Frame, Place, Stack, State
from tfdist.diagnosis.page import page_of, waits_for
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.verdict import Name


class Page(HTMLParser):
    """The content of a page: its texts, and the attributes of its elements by tag."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.elements, self._open = [], [], []
        self.feed(html)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page():
    return Page(page_of(REPORT))


def test_the_verdict_comes_first(page):
    shown = [text for text in page.texts if text.strip()]
    heading = shown.index("STRANDED_AT_BARRIER")
    assert shown[heading + 1] == ", cause: worker:1"
    assert "a <job>" in shown


def test_each_task_has_its_attempts_and_events(page):
    titles = [text for text in page.texts if " s: " in text]
    assert titles == ["2.00 s: a step, examples 0, 1", "3.00 s: failed: <no> & 'none'"]
    grey = [rect for rect in page.of("rect") if rect["fill"] == "#e3e8ef"]
    assert len(grey) == 3
    assert any("has waited for 7.0 s" in text for text in page.texts)


def test_a_waiting_task_points_to_the_task_that_it_waits_for(page):
    assert waits_for(EVIDENCE, REPORT.verdict) == [("worker:0", "worker:1")]
    assert len([line for line in page.of("line") if "marker-end" in line]) == 1


def test_the_page_fetches_nothing():
    html = page_of(REPORT)
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\((?!#)", html)
    assert not re.findall(r'\bsrc="', html)


def test_the_stacks_are_shown_on_demand(page):
    assert len(page.of("details")) == 3
    assert any("_call_tf_sessionrun" in text for text in page.texts)


def lost(**more):
    """Worker 1 is stopped."""
    return at(Place.RUN, "worker:1", state=State.STOPPED, **more)


ENDS = BarrierEvidence("end", ("worker:0", "worker:2"), ("worker:1",))


@pytest.mark.parametrize(
    ("evidence", "name", "waits"),
    [
        (job(at(Place.RUN), lost()), Name.PEER_STOPPED, [("worker:0", "worker:1")]),
        # The verdict says nothing of worker 1, which may be waiting for something else.
        (job(at(Place.INPUT), at(Place.RUN, "worker:1")), Name.INPUT_STALLED, []),
        (job(at(Place.RUN), at(Place.PYTHON, "worker:1")), Name.SLOW, []),
        (job(at(Place.WAIT), at(Place.WAIT, "worker:1")), Name.STUCK_IN_CALL, []),
        (
            job(at(Place.RUN), at(Place.WAIT, "worker:1")),
            Name.STUCK_IN_CALL,
            [("worker:0", "worker:1")],
        ),
        (
            job(at(Place.RUN, steps=1), at(Place.RUN, "worker:1", steps=1)),
            Name.DEADLOCK,
            [("worker:0", "worker:1"), ("worker:1", "worker:0")],
        ),
        (
            job(at(Place.RUN), at(Place.STARTING, "worker:1", quiet_secs=99.0), seconds=99.0),
            Name.NOT_INITIALIZED,
            [],
        ),
        (
            job(
                at(Place.SERVER), at(Place.STARTING, "worker:1", quiet_secs=99.0), seconds=99.0
            ),
            Name.NOT_INITIALIZED,
            [("worker:1", "worker:0")],
        ),
        # Worker 2 has ended: it waits for no task any more.
        (
            job(at(Place.BARRIER), lost(), at(Place.RUN, "worker:2", state=State.ENDED),
                barriers=(ENDS,)),
            Name.PEER_STOPPED,
            [("worker:0", "worker:1")],
        ),
        # A verdict on worker 1, which has left, does not speak of a barrier for worker 2.
        (
            job(
                at(Place.BARRIER),
                at(Place.RUN, "worker:1", state=State.ENDED, ended_secs=3.0),
                at(Place.SERVER, "worker:2", left=True),
                barriers=(ENDS, BarrierEvidence("other", ("worker:0",), ("worker:3",))),
            ),
            Name.STRANDED_AT_BARRIER,
            [("worker:0", "worker:1"), ("worker:0", "worker:2")],
        ),
        (replace(job(at(Place.RUN, state=State.ENDED)), over=True), Name.FINE, []),
    ],
)  # fmt: skip
def test_arrows_show_the_waits_of_which_the_verdict_speaks(evidence, name, waits):
    verdict = diagnose(evidence)
    assert (verdict.name, waits_for(evidence, verdict)) == (name, waits)
    texts = Page(page_of(replace(REPORT, evidence=evidence, verdict=verdict))).texts
    assert ("The verdict counts no wait of one task for another." in texts) == (not waits)


def test_steps_are_shown_only_where_they_are_known():
    evidence = job(at(Place.RUN), at(Place.RUN, "worker:1", steps=1), seconds=99.0)
    html = page_of(replace(REPORT, evidence=evidence))
    assert re.findall(r"(worker:.) runs, is in Session.run([^<]*)", html) == [
        ("worker:0", ""),
        ("worker:1", ", 1 step noted"),
    ]


def test_the_page_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    home, project = tmp_path / "home" / "me", tmp_path / "home" / "me" / "my project"
    project.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    package = os.path.dirname(tfdist.__file__)
    files = {
        f"{project}/train.py": "train.py",
        f"{project}/model/net.py": "model/net.py",
        f"{home}/.venv/lib/python3.11/site-packages/tensorflow/x.py": "tensorflow/x.py",
        "/opt/a b/lib/python3.11/threading.py": "python3.11/threading.py",
        f"{package}/barrier/interface.py": "tfdist/barrier/interface.py",
        "/srv/shared/code/lib.py": ".../code/lib.py",
        "<frozen runpy>": "<frozen runpy>",
    }
    stack = Stack(tuple(Frame(file, 1, f"f{number}") for number, file in enumerate(files)), 1, True)
    error = f"no {project}/part.csv, {home}/x, {tempfile.gettempdir()}/tfdist-a, {home}-2/y"
    evidence = job(replace(at(Place.RUN), stacks=(stack,), error=error))
    report = replace(
        REPORT, evidence=evidence, script=f"{project}/train.py", title=f"{home}/train.py"
    )
    html = page_of(report)
    assert "no part.csv, ~/x, TMP/tfdist-a, " in html
    assert str(tmp_path) not in html.replace(f"{home}-2", "")
    shown = Page(html).texts
    [stacks] = [text for text in shown if text.startswith("main thread") and "f6" in text]
    assert re.findall(r"f\d  (.*):1", stacks) == list(files.values())
    assert "file:" not in html


def test_a_text_that_no_terminal_shows_is_in_the_page_as_an_escape():
    html = page_of(replace(REPORT, title="caf\udce9\x1b[31m"))
    assert r"caf\udce9\x1b[31m" in html.encode().decode()


def test_texts_keep_their_size_in_a_narrow_window(page):
    timeline, graph = page.of("svg")
    assert (timeline["width"], "viewbox" in timeline) == ("100%", False)
    assert graph["viewbox"].startswith(f"0 0 {graph['width']} ")
    assert int(graph["width"]) <= 388  # of a window of 420 pixels
