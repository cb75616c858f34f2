"""What a fleet costs that is no worse for its users than a rule of practice.

The SLO is a limit, and the cheapest fleet that keeps it uses up what the limit allows; a rule that is
too dear may serve more requests within it. To compare the two like with like, the cheapest trial is
sought that serves no fewer of them. Its traffic is that of the final choice: what it then comes to is
said on unseen traffic, as of the winner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from serving.plan import Plan
from workbench.tune.evaluate import Score
from workbench.tune.point import Ground
from workbench.tune.proof import Proven, Trial

ARTICLE_HPA = "article-hpa"
AS_GOOD = f"as-good-as-{ARTICLE_HPA}"
_ATTAINMENT = "slo_attainment"
_SAME = 5e-7
"""Shares that differ by less than one in two million requests are equal."""


def as_good(
    rival: Plan,
    proven: Proven,
    trials: Sequence[Trial],
    ground: Ground,
    seeds: Sequence[int],
    scores_of: Callable[[Plan, Sequence[int]], Sequence[Score]],
) -> Plan | None:
    """The cheapest trial that keeps the SLO, and on each of the seeds serves no fewer requests within it.

    Trials with a lower attainment in the search itself than the rival's lowest are not tried, nor are
    those of which no whole day is known.

    Args:    rival: whose attainment is asked for.
             seeds: of the final choice, on which the winner is known.
             scores_of: simulates a plan over some seeds; the score of each.
    Returns: None where the winner is as good itself, or no trial is.
    """
    wanted = _attained(scores_of(rival, seeds))
    won = _attained(proven.on_choice)
    if len(wanted) < len(seeds) or (len(won) == len(seeds) and _no_worse(won, wanted)):
        return None
    whole = [(p, s) for p, s in trials if s.keeps_slo and not s.partial and p != proven.point]
    tried = [t for t in whole if _no_worse([t[1].metrics[_ATTAINMENT]], [min(wanted)])]
    for point, _ in sorted(tried, key=lambda trial: trial[1].metrics["gpu_hours"]):
        plan = ground.plan_of(point, AS_GOOD)
        # Most of those that are worse are so on the first seed.
        for some in (slice(1), slice(1, None)):
            found = scores_of(plan, seeds[some]) if seeds[some] else []
            kept = all(score.keeps_slo for score in found)
            if not (kept and _no_worse(_attained(found), wanted[some])):
                break
        else:
            return plan
    return None


def in_words(table: pd.DataFrame, winner: str) -> str:
    """The winner and the article's autoscaler, by cost and attainment; empty where one is missing.

    Args:    table: of `Tuning.table`.
    """
    rows: dict[str, Mapping[Any, Any]] = {row["name"]: row for row in table.to_dict("records")}
    if ARTICLE_HPA not in rows:
        return ""
    rival, own = rows[ARTICLE_HPA], rows[winner]
    said = f"{_share(own, rival)} than the article's HPA"
    if own["keeps_slo"] and rival["keeps_slo"]:
        said += ", and both keep the SLO"
    said = f"The winner needs {said}; {_both(own, rival)}."
    if AS_GOOD in rows:
        equal = rows[AS_GOOD]
        kept = "keeps" if equal["keeps_slo"] else "breaks"
        said += (
            f" The cheapest trial that on the traffic of the final choice let no fewer of them meet it"
            f" needs {_share(equal, rival)}, {equal['gpu_hours']:,.1f} a day; on unseen traffic it"
            f" {kept} the SLO, {_both(equal, rival)}."
        )
    return said


def _attained(scores: Sequence[Score]) -> list[float]:
    return [float(s.metrics[_ATTAINMENT]) for s in scores if not s.error]


def _no_worse(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Seed by seed; of a score that is missing nothing is known."""
    return len(found) == len(wanted) and all(
        one >= other - _SAME for one, other in zip(found, wanted, strict=True)
    )


def _share(own: Mapping[Any, Any], rival: Mapping[Any, Any]) -> str:
    change = own["gpu_hours"] / rival["gpu_hours"] - 1
    return f"{abs(100 * change):.0f} % {'fewer' if change < 0 else 'more'} GPU hours"


def _both(own: Mapping[Any, Any], rival: Mapping[Any, Any]) -> str:
    return (
        f"{100 * own[_ATTAINMENT]:.4f} % of the requests meet it,"
        f" with the article's {100 * rival[_ATTAINMENT]:.4f} %"
    )
