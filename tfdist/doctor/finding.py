"""What the doctor finds, and in which order it tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing about the environment that its owner should know.

    Attributes:
        check: which check found it; stays the same, so that a program can rely on it.
        severity: "error": the job will fail, hang or lose data; "warning": it may, or somebody
            else is at risk; "note": good to know.
        what: what is so.
        why: why that matters.
        fix: what to do about it.
    """

    check: str
    severity: str
    what: str
    why: str
    fix: str


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first; within a severity the order stays."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
