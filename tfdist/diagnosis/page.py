"""The report on a run as one HTML page without scripts, fonts, or external files.

It is drawn at the width of its window, and names no folder of this machine: it can be passed on.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from tfdist.diagnosis.evidence import Evidence, Place, TaskEvidence
from tfdist.diagnosis.verdict import Name, Verdict
from tfdist.diagnosis.waits import doing, waiting
from tfdist.errors import printable
from tfdist.runs import events as notes
from tfdist.runs.events import Noted, noted
from tfdist.runs.folder import RunFolder, TaskRecord

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.hang { color: #b3261e; } .slow { color: #8a5a00; } .fine { color: #1b6e3c; }
svg { display: block; max-width: 100%; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: #1d2733; }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f2f4f7; border-radius: 4px; }
code { padding: 0.1rem 0.3rem; } pre { padding: 0.7rem; overflow-x: auto; }
summary { cursor: pointer; } li { margin: 0.15rem 0; } .note { color: #5b6673; }
.legend span { margin-right: 1rem; white-space: nowrap; }
.legend b { padding: 0 4px; margin-right: 0.3rem; }
"""
# Height of a row of the timeline, and of its bar; the size of the picture of the waits.
_ROW, _BAR, _WIDTH, _MOST_DRAWN = 46.0, 16, 360.0, 12
_TICKS = 5
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
# The folders of packages, and of the standard library, in a text.
_LIBRARIES = re.compile(r"""(?:/[^/\s:,;'"()<>]+)*/(?:lib/(?=python3)|(?:site|dist)-packages/)""")


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
        page: the page of the documentation that explains the verdict.
        script: path of the script.
    """

    title: str
    verdict: Verdict
    evidence: Evidence
    tracks: tuple[Track, ...]
    seconds: float
    reproduce: str = ""
    about: str = ""
    fix: str = ""
    page: str = "docs/hang.md"
    script: str = ""


def page_of(report: Report) -> str:
    """The page as text."""
    html = ET.Element("html", lang="en")
    head = ET.SubElement(html, "head")
    ET.SubElement(head, "meta", charset="utf-8")
    ET.SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _text(head, "title", f"{report.verdict.name.value}: {report.title}")
    _text(head, "style", _STYLE)
    body, folders = ET.SubElement(html, "body"), _folders(report.script)
    _add_verdict(body, report)
    _text(body, "h2", "What each task did")
    _add_timeline(body, report)
    _text(body, "h2", "Which task waits for which")
    _add_waits(body, report)
    _text(body, "h2", "Stacks of each task")
    for task in report.evidence.tasks:
        _add_task(body, task, folders)
    if report.reproduce:
        _text(body, "h2", "Repeat this run")
        _text(body, "pre", report.reproduce)
    for element in html.iter():
        if element.tag != "style":
            element.text = element.text and without_machine(element.text, folders)
            element.tail = element.tail and without_machine(element.tail, folders)
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
    fix.text = f"What to do: {report.fix or report.verdict.advice}. See "
    _text(fix, "code", report.page)


def _folders(script: str) -> dict[str, str]:
    """What to show for the folders of this machine; the longest come first."""
    scripts = {os.path.dirname(path(script)) for path in (os.path.abspath, os.path.realpath)}
    found = {
        os.path.expanduser("~"): "~",
        tempfile.gettempdir(): "TMP",
        str(Path(__file__).parents[2]): ".",
        **dict.fromkeys(scripts, "."),
    }
    names = sorted((name for name in found if len(name) > 1), key=len, reverse=True)
    return {name: found[name] for name in names}


def without_machine(text: str, folders: Mapping[str, str]) -> str:
    """The text with paths relative to the script, or to the packages, and without other folders.

    Args:
        text: any text of the page.
        folders: what to show for each folder; "." for one to which paths are relative.
    """
    text = _LIBRARIES.sub("", text)
    for folder, shown in folders.items():
        if shown == ".":
            text = text.replace(f"{folder}/", "")
        # The folder itself, and not one whose name begins in the same way.
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", shown, text)
    return printable(text)


def _add_timeline(body: ET.Element, report: Report) -> None:
    bottom = _ROW * len(report.tracks)
    svg = _svg("100%", bottom + 24, "timeline of each task")
    body.append(svg)
    start = min((begin for track in report.tracks for begin, _ in track.attempts), default=0.0)
    length = max(report.seconds - start, 1e-3)
    waits = {name for name, _ in waits_for(report.evidence, report.verdict)}

    def share(seconds: float) -> float:
        return 99 * max(0.0, min(seconds - start, length)) / length  # leaves room for a mark

    def bar(row: int, begin: float, end: float, color: str) -> ET.Element:
        return ET.SubElement(
            svg, "rect", x=f"{share(begin):.2f}%", y=f"{_ROW * row + 20:g}",
            width=f"{max(0.0, share(end) - share(begin)):.2f}%", height=f"{_BAR}", fill=color,
        )  # fmt: skip

    shown = set()
    for row, track in enumerate(report.tracks):
        _label(svg, "0", _ROW * row + 14, track.name)
        for begin, end in track.attempts:
            bar(row, begin, end, "#e3e8ef")
        if track.name in waits and track.events:
            since = track.events[-1].at
            wait = bar(row, since, report.seconds, _WAIT)
            _text(wait, "title", f"has waited for {report.seconds - since:.1f} s")
            shown.add(_WAIT)
        for event in track.events:
            mark = bar(row, event.at, event.at, _COLORS[event.kind])
            mark.set("width", "3")
            _text(mark, "title", f"{event.at:.2f} s: {event.text}")
            shown.add(_COLORS[event.kind])
    ET.SubElement(
        svg, "line", x1="99%", x2="99%", y1="0", y2=f"{bottom:g}",
        stroke="#b3261e", attrib={"stroke-dasharray": "4 3"},
    )  # fmt: skip
    step = _nice(length)
    for tick in range(int(length / step) + 1):
        label = _label(svg, f"{share(start + tick * step):.2f}%", bottom + 16, f"{tick * step:g} s")
        label.set("text-anchor", "middle" if tick else "start")
    legend = ET.SubElement(body, "p", {"class": "note legend"})
    for color, meaning in _LEGEND.items():
        if color in shown:
            key = ET.SubElement(legend, "span")
            ET.SubElement(key, "b", style=f"background: {color}").tail = meaning


def _nice(seconds: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides it into five at most."""
    power = 10.0 ** math.floor(math.log10(max(seconds, 1e-3) / _TICKS))
    factors = (1, 2, 5, 10)
    return next(power * factor for factor in factors if seconds / (power * factor) <= _TICKS)


def _add_waits(body: ET.Element, report: Report) -> None:
    """The waits as text and, if they are few, as a picture."""
    arrows = waits_for(report.evidence, report.verdict)
    if not arrows:
        _text(body, "p", "The verdict counts no wait of one task for another.", "note")
        return
    names = {name for arrow in arrows for name in arrow} | {*report.verdict.culprits}
    drawn = [task.name for task in report.evidence.tasks if task.name in names]
    if len(drawn) <= _MOST_DRAWN:
        body.append(_graph(drawn, arrows, report.verdict.culprits))
    waits = ET.SubElement(body, "ul")
    for other in dict.fromkeys(other for _, other in arrows):
        ones = ", ".join(one for one, awaited in arrows if awaited == other)
        _text(waits, "li", f"waiting for {other}: {ones}")


def _graph(
    names: Sequence[str], arrows: Sequence[tuple[str, str]], culprits: Sequence[str]
) -> ET.Element:
    """The tasks in a circle, with arrows from each waiting task to those that it waits for."""
    across = _WIDTH / 2 - 46
    down = max(60.0, 2.0 * len(names) ** 2)  # no two boxes overlap
    svg = _svg(f"{_WIDTH:g}", 2 * down + 40, "which task waits for which")
    svg.set("viewBox", f"0 0 {_WIDTH:g} {2 * down + 40:g}")
    places = {
        name: (
            _WIDTH / 2 + across * math.sin(2 * math.pi * number / len(names)),
            down + 20 - down * math.cos(2 * math.pi * number / len(names)),
        )
        for number, name in enumerate(names)
    }
    head = ET.SubElement(
        ET.SubElement(svg, "defs"), "marker", id="head", viewBox="0 0 10 10", refX="10", refY="5",
        markerWidth="8", markerHeight="8", orient="auto-start-reverse",
    )  # fmt: skip
    ET.SubElement(head, "path", d="M 0 0 L 10 5 L 0 10 z", fill="#5b6673")
    for one, other in arrows:
        (x1, y1), (x2, y2) = places[one], places[other]
        # Both ends are at the edges of the boxes, which are 88 by 32.
        gap = min(46 / (abs(x2 - x1) or 1e-9), 18 / (abs(y2 - y1) or 1e-9), 0.45)
        ET.SubElement(
            svg, "line", x1=f"{x1 + gap * (x2 - x1):.1f}", y1=f"{y1 + gap * (y2 - y1):.1f}",
            x2=f"{x2 - gap * (x2 - x1):.1f}", y2=f"{y2 - gap * (y2 - y1):.1f}",
            stroke="#5b6673", attrib={"marker-end": "url(#head)"},
        )  # fmt: skip
    for name, (x, y) in places.items():
        is_culprit = name in culprits
        ET.SubElement(
            svg, "rect", x=f"{x - 44:.1f}", y=f"{y - 16:.1f}", width="88", height="32", rx="8",
            fill="#fde8e6" if is_culprit else "#f2f4f7",
            stroke="#b3261e" if is_culprit else "#c3ccd8",
        )  # fmt: skip
        _label(svg, f"{x:.1f}", y + 4, name).set("text-anchor", "middle")
    return svg


def waits_for(evidence: Evidence, verdict: Verdict) -> list[tuple[str, str]]:
    """Pairs of a waiting task and a task that it waits for, of which the verdict speaks."""
    if evidence.over:
        return []
    trainers = waiting(evidence)
    counted = {task.name for task in trainers if doing(task) in verdict.because}
    if verdict.name is Name.NOT_INITIALIZED:
        counted = {task.name for task in trainers if task.place is Place.STARTING}
    # A cause waits for no other task, except in a circle.
    is_circle = verdict.name is Name.DEADLOCK
    pairs = {
        (one, other)
        for one in counted
        for other in verdict.culprits
        if one != other and (is_circle or one not in verdict.culprits)
    }
    # A verdict on trainers that have left names only the barriers at which these are missing.
    only = {*verdict.culprits} if verdict.name is Name.STRANDED_AT_BARRIER else None
    names, alive = {task.name for task in evidence.tasks}, {task.name for task in trainers}
    at_barriers = {
        (one, other)
        for barrier in evidence.barriers
        if only is None or only.intersection(barrier.missing)
        for one in alive.intersection(barrier.arrived)
        for other in names.intersection(barrier.missing)
    }
    return sorted(at_barriers | pairs)


def _file(path: str, folders: Mapping[str, str]) -> str:
    """A file of a stack: of one that is elsewhere on this machine only the last two names."""
    library = re.search(r".*/(?:site|dist)-packages/(.*)", path) or re.search(
        r".*/lib/(python3.*)", path
    )
    shown = without_machine(library[1] if library else path, folders)
    return "/".join(["...", *shown.split("/")[-2:]]) if shown.startswith("/") else shown


def _add_task(body: ET.Element, task: TaskEvidence, folders: Mapping[str, str]) -> None:
    details = ET.SubElement(body, "details")
    place = f", {task.place.value}" if task.stacks else ""
    steps = ""
    if task.trains and task.steps is not None:
        steps = f", {task.steps} step{'' if task.steps == 1 else 's'} noted"
    _text(details, "summary", f"{task.name} {task.state.value}{place}{steps}")
    if task.error:
        _text(details, "p", task.error)
    lines = []
    for stack in task.stacks:
        lines.append(stack.threads)
        lines += [
            f"    {frame.function}  {_file(frame.file, folders)}:{frame.line or '?'}"
            for frame in stack.frames
        ]
        lines += [] if stack.frames else ["    no Python"]
    if task.waits:
        lines.append("threads that wait in the kernel")
        lines += [f"    {count} in {name}" for name, count in task.waits.items()]
    if lines:
        _text(details, "pre", "\n".join(lines))


def _svg(width: str, height: float, label: str) -> ET.Element:
    about = {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": label}
    return ET.Element("svg", {"width": width, "height": f"{height:g}", **about})


def _label(parent: ET.Element, x: str, y: float, text: str) -> ET.Element:
    label = ET.SubElement(parent, "text", x=x, y=f"{y:.1f}")
    label.text = text
    return label


def _text(parent: ET.Element, tag: str, text: str, css: str | None = None) -> ET.Element:
    made = ET.SubElement(parent, tag, {"class": css} if css else {})
    made.text = text
    return made
