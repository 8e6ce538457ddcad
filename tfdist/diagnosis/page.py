"""The report on a run as one HTML page without scripts, fonts, or external files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from tfdist.diagnosis.evidence import Evidence, TaskEvidence
from tfdist.diagnosis.verdict import Verdict
from tfdist.runs import events as notes
from tfdist.runs.events import Noted, noted
from tfdist.runs.folder import RunFolder, TaskRecord

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.hang { color: #b3261e; } .slow { color: #8a5a00; } .fine { color: #1b6e3c; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #1d2733; }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f2f4f7; border-radius: 4px; }
code { padding: 0.1rem 0.3rem; } pre { padding: 0.7rem; overflow-x: auto; }
summary { cursor: pointer; } li { margin: 0.15rem 0; } .note { color: #5b6673; }
"""
# Width of the picture, of the names in it, and height of a row.
_WIDTH, _NAMES, _ROW = 900.0, 90.0, 30.0
_COLORS = {
    notes.STEP: "#2a6fdb",
    notes.SAVED: "#1b6e3c",
    notes.LEFT: "#8a5a00",
    notes.ENDED: "#1b6e3c",
    notes.FAILED: "#b3261e",
    notes.FAULT: "#b3261e",
}
_WAIT = "#f3c6c1"
_LEGEND = {
    _COLORS[notes.STEP]: "progress",
    _WAIT: "waiting",
    _COLORS[notes.SAVED]: "saved or ended",
    _COLORS[notes.LEFT]: "takes no further part",
    _COLORS[notes.FAULT]: "failure or injected fault",
}


_DOCS = Path(__file__).parents[2] / "docs"  # in a checkout


def docs_page(name: str) -> str:
    """The address of a page of the documentation; outside a checkout only its name."""
    path = _DOCS / name
    return path.as_uri() if path.exists() else f"docs/{name}"


@dataclass(frozen=True)
class Event:
    """A mark on the timeline of a task.

    Attributes:
        at: seconds since the run began.
        kind: as in `tfdist.runs.events`.
        text: what happened.
    """

    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class Track:
    """The timeline of a task.

    Attributes:
        name: of the task.
        attempts: the begin and end of each of its processes, in seconds since the run began.
        events: in order of time.
    """

    name: str
    attempts: tuple[tuple[float, float], ...]
    events: tuple[Event, ...]


def timeline(
    run: RunFolder, until: float, events: Mapping[str, Sequence[Event]] | None = None
) -> tuple[Track, ...]:
    """The timelines of the tasks of a run.

    Args:
        run: that goes on, or has ended.
        until: the end of the timelines, in seconds since the run began.
        events: of each task; None for the notes of the tasks of a case of the lab.
    """
    about, said = run.about, noted(run) if events is None else {}
    records: dict[str, list[TaskRecord]] = {name: [] for name in about.tasks}
    for record in run.records():
        records[record.name].append(record)
    return tuple(
        Track(
            name,
            tuple(
                (
                    record.began - about.began,
                    min(until, (record.ended or float("inf")) - about.began),
                )
                for record in records
            ),
            _events(said.get(name, Noted()), about.monotonic, until)
            if events is None
            else tuple(events.get(name, ())),
        )
        for name, records in records.items()
    )


def _events(one: Noted, began: float, until: float) -> tuple[Event, ...]:
    events = [
        Event(note.at - began, note.kind, _event_text(note))
        for record in one.attempts
        for note in record
        if note.kind != notes.ABOUT and note.at - began <= until
    ]
    return tuple(sorted(events, key=lambda event: event.at))


def _event_text(note: notes.Note) -> str:
    if note.kind == notes.STEP:
        return f"step, examples {_shown(note.values['read'])}"
    if note.kind == notes.SAVED:
        return f"saved at step {note.values['step']}"
    if note.kind == notes.FAULT:
        return f"{note.values['what']} {note.values['task']}"
    return {
        notes.LEFT: "takes no further part",
        notes.ENDED: "ended",
        notes.FAILED: f"failed: {note.values.get('error')}",
    }[note.kind]


def _shown(read: Sequence[int]) -> str:
    if not read:
        return "none"
    return ", ".join(map(str, read)) if len(read) <= 8 else f"{min(read)}..{max(read)}"


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        title: of the run.
        verdict: on the run.
        evidence: from which the verdict was made.
        tracks: the timeline of each task.
        seconds: from the begin of the run to the verdict.
        reproduce: the command that repeats the run; "" if there is none.
        about: what the run shows, in a line.
        fix: what to do, in a line; "" for the advice of the verdict.
        page: the address of the page that explains the verdict.
    """

    title: str
    verdict: Verdict
    evidence: Evidence
    tracks: tuple[Track, ...]
    seconds: float
    reproduce: str = ""
    about: str = ""
    fix: str = ""
    page: str = field(default_factory=lambda: docs_page("hang.md"))


def page_of(report: Report) -> str:
    """The page as text."""
    html = ET.Element("html", lang="en")
    head = ET.SubElement(html, "head")
    ET.SubElement(head, "meta", charset="utf-8")
    ET.SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _text(head, "title", f"{report.verdict.name.value}: {report.title}")
    _text(head, "style", _STYLE)
    body = ET.SubElement(html, "body")
    _add_verdict(body, report)
    _text(body, "h2", "What each task did")
    body.append(_timeline(report))
    _text(body, "h2", "Which task waits for which")
    body.append(_graph(report))
    _text(body, "h2", "Stacks of each task")
    for task in report.evidence.tasks:
        _add_task(body, task)
    if report.reproduce:
        _text(body, "h2", "Repeat this run")
        _text(body, "pre", report.reproduce)
    return "<!doctype html>\n" + ET.tostring(html, encoding="unicode", method="html") + "\n"


def _add_verdict(body: ET.Element, report: Report) -> None:
    verdict = report.verdict
    kind = "slow" if verdict.name.is_slow else "hang" if verdict.name.is_wrong else "fine"
    heading = ET.SubElement(body, "h1")
    _text(heading, "span", verdict.name.value, kind)
    if verdict.culprits:
        heading[-1].tail = f", {verdict.tasks}"
    _text(body, "p", report.title + (f": {report.about}" if report.about else ""), "note")
    reasons = ET.SubElement(body, "ul")
    for reason in verdict.because:
        _text(reasons, "li", reason)
    sure = f"The verdict is {verdict.confidence.value}."
    if verdict.would_help:
        sure += f" To be more certain: {verdict.would_help}."
    _text(body, "p", sure)
    fix = ET.SubElement(body, "p")
    fix.text = f"What to do: {report.fix or report.verdict.advice}. "
    link = _text(fix, "a", "Documentation")
    link.set("href", report.page)


def _timeline(report: Report) -> ET.Element:
    height = _ROW * len(report.tracks) + 2 * _ROW
    svg = _svg(_WIDTH, height, "timeline of each task")
    start = min((begin for track in report.tracks for begin, _ in track.attempts), default=0.0)
    length = max(report.seconds - start, 1e-3)
    scale = (_WIDTH - _NAMES - 20) / length
    waiting = {name for name, _ in waits_for(report.evidence, report.verdict)}

    def x(seconds: float) -> str:
        return f"{_NAMES + max(0.0, min(seconds - start, length)) * scale:.1f}"

    for row, track in enumerate(report.tracks):
        middle = _ROW * row + _ROW / 2
        _label(svg, 0, middle + 4, track.name)
        for begin, end in track.attempts:
            width = f"{max(0.0, float(x(end)) - float(x(begin))):.1f}"
            ET.SubElement(
                svg, "rect", x=x(begin), y=f"{middle - 8}", width=width, height="16", rx="3",
                fill="#e3e8ef",
            )  # fmt: skip
        if track.name in waiting and track.events:
            since = track.events[-1].at
            width = f"{float(x(report.seconds)) - float(x(since)):.1f}"
            wait = ET.SubElement(
                svg, "rect", x=x(since), y=f"{middle - 8}", width=width, height="16", fill=_WAIT
            )
            _text(wait, "title", f"has waited for {report.seconds - since:.1f} s")
        for event in track.events:
            mark = ET.SubElement(
                svg, "rect", x=x(event.at), y=f"{middle - 8}", width="3", height="16",
                fill=_COLORS[event.kind],
            )  # fmt: skip
            _text(mark, "title", f"{event.at:.2f} s: {event.text}")
    bottom = _ROW * len(report.tracks)
    ET.SubElement(
        svg, "line", x1=x(report.seconds), x2=x(report.seconds), y1="0", y2=f"{bottom}",
        stroke="#b3261e", attrib={"stroke-dasharray": "4 3"},
    )  # fmt: skip
    step = _nice(length)
    for tick in range(int(length / step) + 1):
        _label(svg, float(x(start + tick * step)), bottom + 16, f"{tick * step:g} s")
    place = _NAMES
    for color, meaning in _LEGEND.items():
        ET.SubElement(
            svg, "rect", x=f"{place}", y=f"{bottom + 30}", width="8", height="12",
            fill=color,
        )  # fmt: skip
        _label(svg, place + 13, bottom + 40, meaning)
        place += 45 + 6.2 * len(meaning)
    return svg


def _nice(seconds: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides it into ten at most."""
    power = 10.0 ** math.floor(math.log10(max(seconds, 1e-3) / 10))
    return next(power * factor for factor in (1, 2, 5, 10) if seconds / (power * factor) <= 10)


def _graph(report: Report) -> ET.Element:
    """The tasks in a circle, with arrows from each waiting task to those that it waits for."""
    tasks = report.evidence.tasks
    size, radius = 240.0, 85.0
    svg = _svg(_WIDTH, size, "which task waits for which")
    places = {
        task.name: (
            _WIDTH / 2 + 3 * radius * math.sin(2 * math.pi * number / len(tasks)),
            size / 2 - radius * math.cos(2 * math.pi * number / len(tasks)),
        )
        for number, task in enumerate(tasks)
    }
    head = ET.SubElement(
        ET.SubElement(svg, "defs"), "marker", id="head", viewBox="0 0 10 10", refX="10", refY="5",
        markerWidth="8", markerHeight="8", orient="auto-start-reverse",
    )  # fmt: skip
    ET.SubElement(head, "path", d="M 0 0 L 10 5 L 0 10 z", fill="#5b6673")
    for one, other in waits_for(report.evidence, report.verdict):
        (x1, y1), (x2, y2) = places[one], places[other]
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        gap = 48 / length  # keeps both ends outside the names
        ET.SubElement(
            svg, "line", x1=f"{x1 + gap * (x2 - x1):.1f}", y1=f"{y1 + gap * (y2 - y1):.1f}",
            x2=f"{x2 - gap * (x2 - x1):.1f}", y2=f"{y2 - gap * (y2 - y1):.1f}",
            stroke="#5b6673", attrib={"marker-end": "url(#head)"},
        )  # fmt: skip
    for task in tasks:
        x, y = places[task.name]
        is_culprit = task.name in report.verdict.culprits
        ET.SubElement(
            svg, "rect", x=f"{x - 44:.1f}", y=f"{y - 16:.1f}", width="88", height="32", rx="8",
            fill="#fde8e6" if is_culprit else "#f2f4f7",
            stroke="#b3261e" if is_culprit else "#c3ccd8",
        )  # fmt: skip
        label = _label(svg, x, y + 4, task.name)
        label.set("text-anchor", "middle")
    return svg


def waits_for(evidence: Evidence, verdict: Verdict) -> list[tuple[str, str]]:
    """Pairs of a waiting task and a task that it waits for, according to the verdict."""
    waiting = [task.name for task in evidence.tasks if task.trains and task.alive and not task.left]
    at_barriers = {
        (one, other)
        for barrier in evidence.barriers
        for one in barrier.arrived
        for other in barrier.missing
    }
    pairs = {(one, other) for one in waiting for other in verdict.culprits if one != other}
    return sorted(at_barriers | pairs) if not evidence.over else []


def _add_task(body: ET.Element, task: TaskEvidence) -> None:
    details = ET.SubElement(body, "details")
    place = f", {task.place.value}" if task.stacks else ""
    steps = f", {task.steps} steps" if task.trains and task.steps is not None else ""
    _text(details, "summary", f"{task.name} {task.state.value}{place}{steps}")
    if task.error:
        _text(details, "p", task.error)
    lines = []
    for stack in task.stacks:
        lines.append(stack.threads)
        lines += [f"    {frame.function}  {frame.file}:{frame.line}" for frame in stack.frames]
        lines += [] if stack.frames else ["    no Python"]
    if task.waits:
        lines.append("threads that wait in the kernel")
        lines += [f"    {count} in {name}" for name, count in task.waits.items()]
    if lines:
        _text(details, "pre", "\n".join(lines))


def _svg(width: float, height: float, label: str) -> ET.Element:
    return ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {width:g} {height:g}",
            "xmlns": "http://www.w3.org/2000/svg",
            "role": "img",
            "aria-label": label,
        },
    )


def _label(parent: ET.Element, x: float, y: float, text: str) -> ET.Element:
    label = ET.SubElement(parent, "text", x=f"{x:.1f}", y=f"{y:.1f}")
    label.text = text
    return label


def _text(parent: ET.Element, tag: str, text: str, css: str | None = None) -> ET.Element:
    made = ET.SubElement(parent, tag, {"class": css} if css else {})
    made.text = text
    return made
