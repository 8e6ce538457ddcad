"""Whether there is a file for each worker."""

from __future__ import annotations

import glob
import os

from tfdist.doctor.finding import Finding


def check(pattern: str, num_trainers: int | None) -> list[Finding]:
    """Looks at the files that match `pattern`; `**` goes through folders."""
    if "://" in pattern:
        return [
            Finding(
                "data.remote",
                "note",
                f"{pattern} was not looked at",
                "It is on a file system that only TensorFlow can read.",
                "Count the files with that system's own tools.",
            )
        ]
    files = [path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    if not files:
        return [
            Finding(
                "data.no_match",
                "error",
                f"no file matches {pattern} on this machine",
                "There is nothing to train on; a worker without data may hang the others.",
                "Look at the pattern and at what is mounted here. In a shell, quote it.",
            )
        ]
    findings = []
    if empty := [path for path in files if os.path.getsize(path) == 0]:
        findings.append(
            Finding(
                "data.empty",
                "warning",
                f"{len(empty)} of {len(files)} files are empty: {', '.join(empty)}",
                "Whoever gets such a file has no examples, and ends before the others.",
                "Look at what wrote them; leave them out.",
            )
        )
    if num_trainers is not None and len(files) < num_trainers:
        findings.append(
            Finding(
                "data.too_few_files",
                "warning",
                f"{len(files)} files for {num_trainers} trainers",
                "Where each trainer takes its share of the files, some get none: they end at once, "
                "and in synchronous training the others wait for them.",
                "Split the data into more files, shard by examples, or start fewer workers.",
            )
        )
    return findings
