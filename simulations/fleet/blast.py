"""The blast radius of a release: whom it touched, for how long, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from serving.plan import Slo
from simulations.fleet.releases import Progress
from simulations.fleet.rollouts import NEW
from simulations.result import BlastRadius


def blast_radius(
    requests: pd.DataFrame,
    progress: Progress,
    slo: Slo,
    *,
    errors: int,
    extra_gpu_hours: float,
) -> BlastRadius:
    """Count what a release did.

    Args:    requests: one row per request with version (of the replica that took it last),
             outcome, and the latencies that the SLO limits.
             errors: of replicas of the new version.
    """
    touched = requests[requests["version"] == NEW]
    answered = touched[touched["outcome"] == "answered"]
    over = np.zeros(len(answered), dtype=bool)
    for name, limit in slo.limits().items():
        over |= (answered[name.replace("_p99", "")] > limit).to_numpy()
    went_back = progress.outcome == "rolled back"
    return BlastRadius(
        outcome=progress.outcome,
        reason=progress.reason,
        touched=len(touched),
        touched_share=len(touched) / max(1, len(requests)),
        failed=int((touched["outcome"] == "failed").sum()),
        errors=errors,
        slowed=int(over.sum()),
        live_at_s=_known(progress.live_s),
        detected_after_s=_known(progress.judged_s - progress.live_s),
        rolled_back_after_s=_known(progress.over_s - progress.judged_s),
        completed_at_s=None if went_back else _known(progress.over_s),
        extra_gpu_hours=extra_gpu_hours,
    )


def held_beyond_s(
    held: Iterable[tuple[float, float]],
    wanted: Sequence[tuple[float, int]],
    since_s: float,
    until_s: float,
) -> float:
    """Pod seconds held beyond what was wanted, between two times.

    Args:    held: (from, to) of each pod.
             wanted: (from, pods) in order of time, the first at 0.
    """
    changes: list[tuple[float, int, int]] = []
    for start_s, end_s in held:
        changes += [(start_s, 1, 0), (end_s, -1, 0)]
    before = 0
    for at_s, count in wanted:
        changes.append((at_s, 0, count - before))
        before = count
    beyond_s, now_s, pods, target = 0.0, 0.0, 0, 0
    for at_s, more, rise in [*sorted(changes), (np.inf, 0, 0)]:
        begin_s, end_s = max(now_s, since_s), min(at_s, until_s)
        if end_s > begin_s:
            beyond_s += max(0, pods - target) * (end_s - begin_s)
        now_s, pods, target = at_s, pods + more, target + rise
    return beyond_s


def _known(seconds: float) -> float | None:
    return float(seconds) if np.isfinite(seconds) else None
