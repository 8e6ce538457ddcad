"""The report as a page: its content, and that it fetches nothing."""

import re
from html.parser import HTMLParser

import pytest

from tests.jobs_seen import EVIDENCE, REPORT
from tfdist.diagnosis.page import page_of, waits_for


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
