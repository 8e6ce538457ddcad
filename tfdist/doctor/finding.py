"""A finding of the doctor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One fact about the environment, with its consequence and what to do.

    Attributes:
        check: the name of the check. It never changes, so a program can rely on it.
        severity: "error": the job will fail, hang or lose data; "warning": it may, or it puts
            others at risk; "note": good to know.
        what: what was found, with its value.
        why: the consequence.
        fix: what to do about it.
    """

    check: str
    severity: str
    what: str
    why: str
    fix: str


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Sorts errors first; within a severity the order stays."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
