"""What one check found."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Literal

from serving.values import Value, shown_html

Status = Literal["pass", "warn", "fail", "skip"]
_SIGNS: dict[Status, str] = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "–"}


class Finding(Value):
    """The answer of one check, and what to do about it."""

    name: str
    status: Status
    """`skip` is what could not be looked at, or is not needed here."""
    says: str
    remedy: str = ""


class Findings(tuple[Finding, ...]):
    """What all checks found, shown in a notebook with the verdict above."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{_SIGNS[finding.status]} {finding.status}</td>"
            + "".join(
                f"<td style='text-align:left'>{html.escape(text)}</td>"
                for text in (finding.name, finding.says, finding.remedy)
            )
            + "</tr>"
            for finding in self
        )
        head = "".join(f"<th>{name}</th>" for name in ("", "check", "says", "remedy"))
        return f"{shown_html(verdict(self))}<table><tr>{head}</tr>{rows}</table>"


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
