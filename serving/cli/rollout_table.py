"""How the terminal shows a rollout."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serving.gateway.rollout import RolloutState, Status


def head(state: RolloutState) -> str:
    """A state in a line or two."""
    words = {
        "steady": f"{state.stable} serves all",
        "canary": f"{state.candidate} takes {state.share:.4g} of the conversations beside {state.stable}"
        f" (step {state.step + 1} of {len(state.shares)})",
        "switched": f"{state.candidate} serves all; rollback returns to {state.stable}",
        "promoted": f"{state.stable} serves all; rollback returns to {state.candidate}",
        "rolled_back": f"{state.stable} serves all again, {state.candidate} was taken back",
    }[state.phase]
    return f"{state.phase}: {words}" + (f"\n{state.reason}" if state.reason else "")


def shown(found: Status) -> Group:
    """The state, a row for each track, and when it is looked at next."""
    latency = found.latency
    table = Table(box=None, pad_edge=False)
    columns = ("track", "role", "share", "healthy", "requests", "failed", "errors", "TTFT p99")
    latencies = dict.fromkeys(("ttft", latency))
    names = (*columns, *(f"{n.upper()} mean" for n in latencies), "users hit", "still needed")
    for name in names:
        table.add_column(name, justify="left" if name in ("track", "role") else "right")
    for t in found.tracks:
        table.add_row(
            *(t.track, t.role, f"{t.share:.4g}", "?" if t.healthy is None else str(t.healthy)),
            *(str(t.requests), str(t.failed)),
            "-" if t.error_share is None else f"{t.error_share:.2%}",
            *(_seconds(s) for s in (t.ttft_p99_s, *(getattr(t, f"{n}_mean_s") for n in latencies))),
            *(str(t.users_hit), str(t.requests_needed)),
        )
    parts: list[RenderableType] = [Text(head(found.state)), table]
    if found.next_look_in_s is not None:
        verdict = found.state.verdict or "not looked at yet"
        parts.append(Text(f"verdict: {verdict}; next look in {found.next_look_in_s:.0f} s"))
    if found.state.phase == "rolled_back":
        parts.append(Text("figures until it was taken back"))
    return Group(*parts)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g} s"
