"""Plays cases again and again: one often, for its rate; or all, broken and fixed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfdist.cluster.shape import Shape
from tfdist.diagnosis.verdict import Name
from tfdist.repro.case import Case
from tfdist.repro.lab import Played, Plays
from tfdist.repro.rate import Rate


@dataclass(frozen=True)
class Row:
    """A case in the matrix: the runs of both halves.

    Attributes:
        case: that was played.
        broken: the runs of the broken one.
        fixed: that of the fixed one.
    """

    case: Case
    broken: tuple[Played, ...]
    fixed: Played

    @property
    def fixed_ok(self) -> bool:
        """Whether the fixed one has ended, with every example read."""
        return self.fixed.as_expected

    @property
    def as_expected(self) -> bool:
        """Whether both halves did what belongs to the case."""
        return self.fixed_ok and all(played.as_expected for played in self.broken)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        runs = (*self.broken, self.fixed)
        return {
            "case": self.case.name,
            "expected": [name.value for name in self.case.expects],
            "verdict": self.broken[-1].verdict.name.value,
            "verdicts": {name.value: count for name, count in verdicts(self.broken).items()},
            "fixed_ok": self.fixed_ok,
            "as_expected": self.as_expected,
            "seconds": round(sum(played.seconds for played in runs), 1),
            "stall_secs": self.case.stall_secs,
            "told_secs": [
                played.told_secs and round(played.told_secs, 1) for played in self.broken
            ],
            "folders": [str(played.folder) for played in runs],
        }


def verdicts(runs: Sequence[Played]) -> Counter[Name]:
    """How often each verdict came."""
    return Counter(played.verdict.name for played in runs)


def hang_rate(runs: Sequence[Played]) -> Rate:
    """How many of the runs stood still for good; one that was only slow did not."""
    return Rate(sum(played.hangs for played in runs), len(runs))


def play_matrix(
    cases: Sequence[Case], plays: Plays, folder: Path, jobs: int, seed: int
) -> Iterator[Row]:
    """Plays both halves of each case, `jobs` of them at a time; each row as soon as it is there.

    Args:
        cases: in their order.
        plays: the lab.
        folder: for what the runs leave.
        jobs: how many runs go on at the same time.
        seed: of the first run of each case; the next ones have the next numbers.
    """
    with ThreadPoolExecutor(jobs) as pool:

        def start(case: Case, fixed: bool, number: int) -> Callable[[], Played]:
            path = folder / _folder_name(case, fixed, number)
            return pool.submit(plays, case, fixed=fixed, seed=seed + number, folder=path).result

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
            plays.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _folder_name(case: Case, fixed: bool, number: int) -> str:
    return f"{case.name.replace('/', '-')}-{'fixed' if fixed else 'broken'}-{number}"


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
    share = case.shape.num_workers * case.settings["epochs"]
    assert case.examples is not None
    return [
        replace(
            case,
            shape=Shape(num_ps, num_workers),
            examples=case.examples // share * num_workers * epochs,
            settings={"inter_op": threads, "iterator_on_ps": on_ps, "epochs": epochs},
            stall_secs=max(case.stall_secs, 1.0 * num_workers),
            deadline_secs=60.0 + 1.0 * num_workers * epochs,
        )
        for num_ps, num_workers, threads, on_ps in itertools.product(
            ps, workers, inter_op, iterator_on_ps
        )
    ]


def size_flags(case: Case) -> str:
    """The size of a case of `grid` as flags of `tfdist repro run`; empty for all other cases."""
    if "inter_op" not in case.settings:
        return ""
    flags = {
        "ps": case.shape.num_ps,
        "workers": case.shape.num_workers,
        "inter-op": case.settings["inter_op"],
        "epochs": case.settings["epochs"],
        "iterator": "ps" if case.settings["iterator_on_ps"] else "local",
    }
    return " ".join(f"--{name} {value}" for name, value in flags.items())
