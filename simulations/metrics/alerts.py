"""Which alerts a simulated day would have fired, and which of them users would not have noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from serving.alerts import ALERTS, Alert
from simulations.metrics.samples import Flags, FloatArray
from simulations.metrics.telemetry import BEHIND_S, Telemetry

COLUMNS = ["alert", "started_at_s", "ended_at_s"]


@dataclass
class _State:
    """Inactive (no active_s), pending, or firing."""

    active_s: float | None = None
    fired_s: float | None = None


class Alerting:
    """Evaluates alert rules every interval, behind the time of what is scraped.

    Source:  Prometheus, rules/alerting.go Eval: active where the expression gives anything (NaN > 1 is
             nothing), firing from the first evaluation at which it has been so for `for`, and over at
             the first at which it is not.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        interval_s: float,
        phase_s: float = 0.0,
        rules: Sequence[Alert] = ALERTS,
    ) -> None:
        self._telemetry = telemetry
        self._interval_s = interval_s
        self._next_s = phase_s
        self._rules = rules
        self._states = [_State() for _ in rules]
        self._over: list[tuple[str, float, float]] = []

    def catch_up(self, now_s: float, *, at_once: bool = False) -> None:
        """Evaluate what was due until now, many times together unless all is wanted at once.

        Samples of until now are there.
        """
        if not self._rules:
            return
        due = int((now_s - self._next_s) // self._interval_s) + 1
        if due < 1 or not (at_once or due * self._interval_s > BEHIND_S / 2):
            return
        times = [self._next_s + i * self._interval_s for i in range(due)]
        self._next_s = times[-1] + self._interval_s
        query = self._telemetry.query(times)
        for rule, state in zip(self._rules, self._states, strict=True):
            holds = query(rule.expression).present[:, 0, 0]
            if state.active_s is None and not holds.any():
                continue
            for at_s, held in zip(times, holds.tolist(), strict=True):
                self._look(rule, state, at_s, held)

    def _look(self, rule: Alert, state: _State, at_s: float, held: bool) -> None:
        if not held:
            if state.fired_s is not None:
                self._over.append((rule.name, state.fired_s, at_s))
            state.active_s = state.fired_s = None
            return
        if state.active_s is None:
            state.active_s = at_s
        if state.fired_s is None and at_s - state.active_s >= rule.for_s:
            state.fired_s = at_s

    def fired(self, until_s: float) -> pd.DataFrame:
        """All firings until then; one that is not over ends then.

        Returns: DataFrame alert, started_at_s, ended_at_s, by start.
        """
        self.catch_up(until_s, at_once=True)
        still = [
            (rule.name, state.fired_s, until_s)
            for rule, state in zip(self._rules, self._states, strict=True)
            if state.fired_s is not None
        ]
        table = pd.DataFrame([*self._over, *still], columns=COLUMNS)
        return table.sort_values(["started_at_s", "alert"], ignore_index=True)


def noise(
    fired: pd.DataFrame,
    arrived_s: FloatArray,
    over_s: FloatArray,
    broken: Flags,
    rules: Sequence[Alert] = ALERTS,
) -> list[bool]:
    """Which firings nobody would have noticed: no request broke the SLO that was under way meanwhile.

    Meanwhile is from the begin of what the alert looks back at to its end.

    Args:    arrived_s, over_s: of each request that counts.
             broken: whether it broke the SLO.
    """
    reach_s = {rule.name: rule.reach_s for rule in rules}
    bad_from_s, bad_to_s = arrived_s[broken], over_s[broken]
    return [
        not bool(((bad_from_s <= end_s) & (bad_to_s >= start_s - reach_s[name])).any())
        for name, start_s, end_s in fired[COLUMNS].itertuples(index=False)
    ]
