"""Ends a job that stands still, having told where everybody stands."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from rich.console import Console

from tfdist.cli.barriers import Barriers, ask_in_fork
from tfdist.cli.job_evidence import job_evidence
from tfdist.cli.stacks import JobStacks, sightings_of
from tfdist.cli.status import JobStatus, show_barriers, status_of
from tfdist.cluster.life_signs import life_signs
from tfdist.cluster.run_folder import RunFolder
from tfdist.errors import StallError
from tfdist.evidence import Evidence
from tfdist.judge import judge
from tfdist.repro.page import Report, page_of
from tfdist.repro.timeline import timeline
from tfdist.stall import StallWatch, Standstill
from tfdist.verdict import PATIENCE, Verdict

# Who does not answer in this time is in the report as such, which is to come within 5 s.
_ANSWER_SECS = 3.0
_TEXT_FILE, _JSON_FILE, _PAGE_FILE = "stall.txt", "stall.json", "stall.html"


class StallGuard:
    """Looks at a run, each time that it is called, and raises once it has stood still too long.

    Where somebody works or starts, it is only slow: that is told, and it goes on until it has
    stood still twice as long, PATIENCE times at most.

    Args:
        run: that goes on; its launcher is this process.
        trainers: names of the trainers.
        timeout: seconds after which it has.
        is_kept: whether the folder of the run outlives it.
        ends: whether it raises; else it tells, and the run goes on.
    """

    def __init__(
        self,
        run: RunFolder,
        trainers: Sequence[str],
        timeout: float,
        *,
        is_kept: bool,
        ends: bool = True,
    ) -> None:
        self._run, self._trainers, self._timeout = run, trainers, timeout
        self._is_kept, self._ends = is_kept, ends
        self._watch = StallWatch()
        self._looks = 0  # at this standstill

    def __call__(self) -> None:
        """Looks; if the run has stood still too long, blocks for some seconds, for the report.

        Raises:
            StallError: the report is printed, and lies in the folder of the run.
        """
        standstill = self._look()
        if standstill.seconds < self._timeout:
            self._looks = 0
        if standstill.seconds < self._timeout * 2**self._looks:
            return
        report = _report_of(self._run, self._trainers, standstill)
        now = self._look()
        if now.seconds < standstill.seconds:  # it has got on in the last moment
            return
        self._looks += 1
        if report.verdict.name.is_slow and self._looks <= PATIENCE:
            print(f"tfdist: {_since(now)}: {report.verdict}", file=sys.stderr, flush=True)
            return
        error = StallError(
            now.seconds,
            now.last,
            {row.task: row.place for row in report.status.rows if row.task in self._trainers},
            str(self._run.path / _TEXT_FILE) if self._is_kept else None,
            report.verdict,
        )
        # In one piece: the lines of the tasks do not come in between.
        advice = f"what helps: {report.verdict.name.advice} (docs/hang.md)"
        text = f"tfdist: {report.verdict}\ntfdist: {advice}\n{_since(now)}:\n{report.text()}"
        print(text, end="", file=sys.stderr, flush=True)
        (self._run.path / _TEXT_FILE).write_text(f"{error}\n\n{report.text()}", "utf-8")
        (self._run.path / _JSON_FILE).write_text(json.dumps(report.as_json(error)) + "\n", "utf-8")
        (self._run.path / _PAGE_FILE).write_text(report.page(), "utf-8")
        if self._ends:
            raise error

    def _look(self) -> Standstill:
        return self._watch.look(life_signs(self._run, self._trainers))


def _since(standstill: Standstill) -> str:
    return f"nobody has got on for {standstill.seconds:.1f} s"


@dataclass(frozen=True)
class _Report:
    status: JobStatus
    barriers: Barriers
    stacks: JobStacks
    evidence: Evidence
    verdict: Verdict

    def text(self) -> str:
        """As `tfdist status` and `tfdist stacks` print it."""
        text, width = io.StringIO(), Console(stderr=True).width
        console = Console(file=text, width=width, highlight=False, markup=False, emoji=False)
        self.status.show_tasks(console)
        show_barriers(self.barriers, console)
        console.print()
        self.stacks.show(console)
        return text.getvalue()

    def as_json(self, error: StallError) -> dict[str, object]:
        return {
            "seconds": round(error.seconds, 3),
            "last": error.last,
            "places": error.places,
            "verdict": asdict(self.verdict),
            "status": self.status.as_json(self.barriers),
            "stacks": self.stacks.as_json(),
        }

    def page(self) -> str:
        """As `tfdist repro` shows a run."""
        seconds = self.status.seconds
        return page_of(
            Report(
                title=f"{self.status.about.get('script', 'a job')}, after {seconds:.0f} s",
                verdict=self.verdict,
                evidence=self.evidence,
                tracks=timeline(self.status.run, seconds),
                seconds=seconds,
            )
        )


def _report_of(run: RunFolder, trainers: Sequence[str], standstill: Standstill) -> _Report:
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(sightings_of, run, run.about["tasks"])
        status = status_of(run)
        barriers = status.barriers(functools.partial(ask_in_fork, timeout=_ANSWER_SECS))
        stacks = seen.result()
    evidence = job_evidence(stacks, barriers, trainers, standstill.seconds)
    return _Report(status, barriers, stacks, evidence, judge(evidence))
