"""Plays cases in series: one case many times, for its hang rate, or all cases, broken and fixed."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tfdist.cluster.shape import Shape
from tfdist.diagnosis.page import Report, page_of, timeline
from tfdist.diagnosis.verdict import Name
from tfdist.repro.case import Case
from tfdist.repro.lab import Lab, Played
from tfdist.repro.matrix import EpochSettings
from tfdist.runs.folder import RunFolder

REPORT_FILE = "report.html"
_BISECTIONS = 60  # more than a float has digits


@dataclass(frozen=True)
class Rate:
    """How often something happened: in `hits` of `runs` independent runs.

    The interval is the exact one: C. J. Clopper and E. S. Pearson, The use of confidence or
    fiducial limits illustrated in the case of the binomial, Biometrika 26 (1934).
    """

    hits: int
    runs: int

    def bounds(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval that holds the true rate with this confidence.

        If all runs or none were hits, the whole confidence goes to the one bound that is open:
        0 of 59 means at most 5%.
        """
        one_sided = self.hits in (0, self.runs)
        tail = (1 - confidence) / (1 if one_sided else 2)
        low = 0.0 if self.hits == 0 else self._solve(self.hits - 1, 1 - tail)
        high = 1.0 if self.hits == self.runs else self._solve(self.hits, tail)
        return low, high

    def _solve(self, hits: int, chance: float) -> float:
        """The rate at which the chance of `hits` or fewer is `chance`; it falls as rates rise."""
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if _at_most(hits, self.runs, middle) > chance:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def __str__(self) -> str:
        """The count, the rate and its interval."""
        low, high = self.bounds()
        runs = f"{self.hits} of {self.runs} {'run' if self.runs == 1 else 'runs'}"
        if self.hits == 0:
            return f"{runs} (95% confidence: at most {high:.1%})"
        return f"{runs}, {self.hits / self.runs:.0%} (95% confidence: {low:.0%} to {high:.0%})"


def _at_most(hits: int, runs: int, rate: float) -> float:
    return sum(math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(hits + 1))


@dataclass(frozen=True)
class Row:
    """A case in the matrix.

    Attributes:
        case: the case.
        broken: its runs without the fix.
        fixed: its run with the fix.
    """

    case: Case
    broken: tuple[Played, ...]
    fixed: Played

    @property
    def as_expected(self) -> bool:
        """True if every run had a verdict that belongs to the case."""
        return all(played.as_expected for played in (*self.broken, self.fixed))


def verdicts(runs: Sequence[Played]) -> Counter[Name]:
    """How often each verdict came."""
    return Counter(played.verdict.name for played in runs)


def hang_rate(runs: Sequence[Played]) -> Rate:
    """How many of the runs hung; a run that was only slow did not hang."""
    return Rate(sum(played.hangs for played in runs), len(runs))


def play_often(
    case: Case, lab: Lab, folder: Path, *, fixed: bool, times: int, seed: int
) -> list[Played]:
    """Plays a case several times, each time with the next seed, and writes a report for each run.

    Args:
        case: what to play.
        lab: where to play.
        folder: each run gets a new folder in this one.
        fixed: True to play it with the fix.
        times: how often.
        seed: of the first run.
    """
    runs = []
    for number in range(times):
        path = Path(tempfile.mkdtemp(prefix=f"{case.name.replace('/', '-')}-", dir=folder))
        runs.append(_play(lab, case, fixed, seed + number, path))
    return runs


def play_matrix(
    cases: Sequence[Case], lab: Lab, folder: Path, jobs: int, seed: int
) -> Iterator[Row]:
    """Plays each case without and with its fix, and yields each row as soon as it is complete.

    Args:
        cases: what to play, in this order.
        lab: where to play.
        folder: each run gets a folder in this one, with its report.
        jobs: how many runs go on at the same time.
        seed: of the first run of each case; the next runs have the next numbers.
    """
    with ThreadPoolExecutor(jobs) as pool:

        def start(case: Case, fixed: bool, number: int) -> Callable[[], Played]:
            half = "fixed" if fixed else "broken"
            path = folder / f"{case.name.replace('/', '-')}-{half}-{number}"
            return pool.submit(_play, lab, case, fixed, seed + number, path).result

        started = [
            (
                case,
                [start(case, False, number) for number in range(case.runs)],
                start(case, True, 0),
            )
            for case in cases
        ]
        try:
            for case, broken, fixed in started:
                yield Row(case, tuple(played() for played in broken), fixed())
        except BaseException:
            lab.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _play(lab: Lab, case: Case, fixed: bool, seed: int, folder: Path) -> Played:
    """Plays a case once, and writes the report."""
    size = f" {flags}" if (flags := size_flags(case)) else ""
    arguments = f"{case.name}{size}{' --fixed' if fixed else ''} --seed {seed}"
    lab.log(f"running {arguments}")
    played = lab.play(case, fixed=fixed, seed=seed, folder=folder)
    report = Report(
        title=f"{case.name}{' (fixed)' if fixed else ''}",
        about=case.about,
        verdict=played.verdict,
        evidence=played.evidence,
        tracks=timeline(RunFolder(folder), played.diagnosed_secs),
        seconds=played.diagnosed_secs,
        reproduce=f"tfdist repro run {arguments}",
        fix=case.fix.removesuffix("."),  # the page goes on in the same line
        page=f"docs/hangs/{case.module}.md",
    )
    (folder / REPORT_FILE).write_text(page_of(report), "utf-8")
    return played


def grid(
    case: Case,
    *,
    ps: Sequence[int],
    workers: Sequence[int],
    inter_op: Sequence[int],
    iterator_on_ps: Sequence[bool],
    epochs: int,
) -> list[Case]:
    """The job of tensorflow#23846 in all sizes; each trainer has as many examples as in `case`."""
    share = case.shape.num_workers * case.settings.epochs
    assert case.examples is not None
    return [
        replace(
            case,
            shape=Shape(num_ps, num_workers),
            examples=case.examples // share * num_workers * epochs,
            settings=EpochSettings(threads, on_ps, epochs),
            stall_secs=max(case.stall_secs, 1.0 * num_workers),
            deadline_secs=60.0 + 1.0 * num_workers * epochs,
        )
        for num_ps, num_workers, threads, on_ps in itertools.product(
            ps, workers, inter_op, iterator_on_ps
        )
    ]


def size_flags(case: Case) -> str:
    """The flags of `tfdist repro run` for the size of a case of `grid`; "" for all other cases."""
    settings = case.settings
    if not isinstance(settings, EpochSettings):
        return ""
    flags = {
        "ps": case.shape.num_ps,
        "workers": case.shape.num_workers,
        "inter-op": settings.inter_op,
        "epochs": settings.epochs,
        "iterator": "ps" if settings.iterator_on_ps else "local",
    }
    return " ".join(f"--{name} {value}" for name, value in flags.items())
