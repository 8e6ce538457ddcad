"""The signs of life that the tasks of a run leave in its folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tfdist.barrier_notes import passed_at
from tfdist.cluster.processes import PROGRESS_FILE
from tfdist.cluster.run_folder import STREAMS, RunFolder
from tfdist.stall import Signs


def life_signs(run: RunFolder, trainers: Collection[str]) -> dict[str, Signs]:
    """What is seen now of each task that has started, by name.

    Args:
        run: whose tasks are meant.
        trainers: names of those whose notes of progress count.
    """
    signs = {}
    for life in run.latest():
        folder = run.folder_of(life.name, life.attempt)
        signs[life.name] = Signs(
            attempt=life.attempt,
            ended=life.ended is not None,
            progress=_text(folder / PROGRESS_FILE) if life.name in trainers else None,
            passed_at=passed_at(folder),
            printed=sum((folder / stream).stat().st_size for stream in STREAMS.values()),
        )
    return signs


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
