"""Which barriers a trainer has made, noted in its folder, where `tfdist status` finds them.

A barrier's state is on a ps, which tells of it only to those who know its name and how many
parties it has. So each trainer that `tfdist run` started notes these: a line of JSON for each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tfdist.task import PROGRESS_VARIABLE

_FILE = "barriers"  # beside the file of the progress


@dataclass(frozen=True)
class BarrierNote:
    """What one has to know of a barrier to ask for it."""

    name: str
    parties: int


def note_barrier(note: BarrierNote, environ: Mapping[str, str] | None = None) -> None:
    """Notes it, unless it was noted before; without a launcher it does nothing.

    Args:
        note: of a barrier that this process makes.
        environ: of the task; None for `os.environ` as it is now.
    """
    progress = (os.environ if environ is None else environ).get(PROGRESS_VARIABLE)
    if progress is None or note in noted_barriers(Path(progress).parent):
        return
    with open(Path(progress).with_name(_FILE), "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(note)) + "\n")


def noted_barriers(folder: Path) -> list[BarrierNote]:
    """Those that were noted in the folder of a task, in the order in which they were made."""
    try:
        text = (folder / _FILE).read_text("utf-8")
    except FileNotFoundError:
        return []
    # What follows the last end of a line is being written.
    lines = text.split("\n")[:-1]
    return list(dict.fromkeys(BarrierNote(**json.loads(line)) for line in lines))
