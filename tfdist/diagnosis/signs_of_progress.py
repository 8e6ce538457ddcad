"""The signs of life that the tasks of a run leave in its folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tfdist.diagnosis.stall_clock import Signs
from tfdist.runs.barrier_notes import passed_at
from tfdist.runs.folder import PROGRESS_FILE, STREAMS, RunFolder


def signs_of_progress(run: RunFolder, trainers: Collection[str]) -> dict[str, Signs]:
    """What is seen now of each task that has started, by name.

    Args:
        run: whose tasks are meant.
        trainers: names of those whose notes of progress count.
    """
    signs = {}
    for record in run.latest():
        folder = run.folder_of(record.name, record.attempt)
        signs[record.name] = Signs(
            attempt=record.attempt,
            ended=record.ended is not None,
            progress=_text(folder / PROGRESS_FILE) if record.name in trainers else None,
            passed_at=passed_at(folder),
            printed=sum((folder / stream).stat().st_size for stream in STREAMS.values()),
        )
    return signs


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
