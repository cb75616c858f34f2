"""What one check found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from serving.values import Value

Status = Literal["pass", "warn", "fail", "skip"]


class Finding(Value):
    """The answer of one check, and what to do about it."""

    name: str
    status: Status
    """`skip` is what could not be looked at, or is not needed here."""
    says: str
    remedy: str = ""


def verdict(findings: Iterable[Finding]) -> str:
    """One line: whether it will run, and what stands against it."""
    by_status: dict[str, list[str]] = {"fail": [], "warn": [], "pass": [], "skip": []}
    for finding in findings:
        by_status[finding.status].append(finding.name)
    failed, warned = by_status["fail"], by_status["warn"]
    if failed:
        also = f"; {len(warned)} to look at" if warned else ""
        return f"Not ready: {', '.join(failed)}{also}."
    if warned:
        return f"Ready, with {len(warned)} to look at: {', '.join(warned)}."
    skipped = f", {len(by_status['skip'])} not looked at" if by_status["skip"] else ""
    return f"Ready: {len(by_status['pass'])} checks passed{skipped}."
