"""All that is told of a run of `tfdist run` that stands still: text, JSON and a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.evidence import Evidence
from tfdist.diagnosis.job_evidence import job_evidence
from tfdist.diagnosis.job_stacks import JobStacks, stacks_of
from tfdist.diagnosis.page import Report, page_of
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.status import JobStatus, show_barriers, status_of
from tfdist.diagnosis.timeline import Event, timeline
from tfdist.diagnosis.verdict import Verdict
from tfdist.runs.barrier_notes import BarrierNote
from tfdist.runs.folder import RunFolder


@dataclass(frozen=True)
class JobReport:
    """What is known of a run, and the verdict on it."""

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

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "verdict": asdict(self.verdict),
            "status": self.status.as_json(self.barriers),
            "stacks": self.stacks.as_json(),
        }

    def page(self, seen: Mapping[str, Sequence[Event]]) -> str:
        """As `tfdist repro` shows a run; with what was seen of each task, by its name."""
        seconds = self.status.seconds
        return page_of(
            Report(
                title=f"{self.status.about.script or 'a job'}, after {seconds:.0f} s",
                verdict=self.verdict,
                evidence=self.evidence,
                tracks=timeline(self.status.run, seconds, seen),
                seconds=seconds,
            )
        )


def report_of(
    run: RunFolder,
    trainers: Collection[str],
    asks: Callable[[int, dict[str, list[str]], Sequence[BarrierNote]], Barriers],
    *,
    seconds: float | None = None,
    native: bool = False,
) -> JobReport:
    """Looks at all tasks of a run; blocks for a second, or up to five, or as long as `asks` does.

    Args:
        run: that goes on, or is over.
        trainers: names of those tasks that train.
        asks: how its barriers stand; see `tfdist.diagnosis.barriers`.
        seconds: since anybody got on; if None, by the notes that its tasks leave.
        native: whether py-spy is asked too.
    """
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(stacks_of, run, run.about.tasks, native=native, diagnosed=True)
        status = status_of(run)
        barriers = status.barriers(asks)
        stacks = seen.result()
    evidence = job_evidence(stacks, barriers, trainers, seconds)
    return JobReport(status, barriers, stacks, evidence, diagnose(evidence))
