"""What may go wrong with files and trainers, told before anybody trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from tfdist.data.entry import Change, FileEntry

_UNEVEN = 4  # times the records of the median file

WarningKind = Literal["damaged", "empty", "too_few_files", "uneven"] | Change


@dataclass(frozen=True)
class FileIssue:
    """One thing that may go wrong; as a string it is its text.

    Attributes:
        kind: "damaged", "empty", "too_few_files", "uneven", or what happened since the scan:
            "unreadable", "shrunk", "rewritten", "grown".
        text: what it is, what comes of it, what to do.
        paths: the files that it is about.
    """

    kind: WarningKind
    text: str
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def file_warnings(
    files: Sequence[FileEntry],
    num_trainers: int,
    changes: Sequence[tuple[Change, str] | None],
) -> tuple[FileIssue, ...]:
    """The warnings for these files, of which `changes` tells what happened since their scan."""
    found = []
    for entry, change in zip(files, changes, strict=True):
        if error := entry.error():
            text = f"{error}. What is lost has no numbers, so no ledger misses it. Mend the file."
            found.append(FileIssue("damaged", text, (entry.path,)))
        if change is not None:
            kind, what = change
            advice = "" if kind == "grown" else " Reading it fails. Scan the files again."
            found.append(FileIssue(kind, f"{entry.path}: {what}.{advice}", (entry.path,)))
    empty = tuple(entry.path for entry in files if not entry.records and not entry.problem)
    if empty:
        text = (
            f"{len(empty)} of {len(files)} files are empty: {', '.join(empty)}. Whoever gets such "
            "a file has no examples, and ends before the others. Look at what wrote them."
        )
        found.append(FileIssue("empty", text, empty))
    if len(files) < num_trainers:
        text = (
            f"{len(files)} files for {num_trainers} trainers. Where each trainer takes its share "
            "of the files, some get none: they end at once, and in synchronous training the "
            "others wait for them. Share splits(), or start fewer workers."
        )
        found.append(FileIssue("too_few_files", text))
    sizes = [entry.records for entry in files if entry.records]
    if sizes and max(sizes) > _UNEVEN * median(sizes):
        largest = max(files, key=lambda entry: entry.records)
        text = (
            f"the files are uneven: {largest.path} has {largest.records:,} records, the median "
            f"file {median(sizes):,.0f}. Where each trainer takes its share of the files, the "
            "others wait for whoever gets the largest. Share splits()."
        )
        found.append(FileIssue("uneven", text, (largest.path,)))
    return tuple(found)
