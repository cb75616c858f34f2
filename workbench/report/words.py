"""Numbers as a reader wants them."""

from __future__ import annotations

import math

from serving.plan import Variant
from serving.values import Estimate


def seconds(value_s: float) -> str:
    """0.0421 is '42.1 ms', 1.26 is '1.26 s'."""
    if not math.isfinite(value_s):
        return "–"
    return ms(1e3 * value_s) if value_s < 1 else f"{value_s:.3g} s"


def ms(value_ms: float) -> str:
    """Milliseconds to three digits."""
    return f"{value_ms:.3g} ms" if value_ms < 1000 else f"{value_ms / 1e3:.3g} s"


def percent(share: float) -> str:
    """0.0731 is '7.3 %'; just below 100 % with one digit more."""
    if not math.isfinite(share):
        return "–"
    value = 100 * share
    digits = 2 if 99.5 < value < 100 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") + " %"


def kept_of_parent(variant: Variant, max_loss: float) -> str:
    """'97.9 % (95.1 to 101), in doubt': what a variant keeps of its parent's score."""
    if variant.quality is None:
        return "–"
    verdict = variant.quality.verdict(max_loss)
    return with_interval(variant.quality.recovery) + ("" if verdict == "keeps" else f", {verdict}")


def with_interval(share: Estimate) -> str:
    """'97.9 % (95.1 to 101)'."""
    return f"{percent(share.value)} ({100 * share.low:.3g} to {100 * share.high:.3g})"


def share_change(value: float, base: float) -> str:
    """'12 % fewer' or '8 % more' than a base."""
    change = value / base - 1
    return f"{abs(100 * change):.0f} % {'fewer' if change <= 0 else 'more'}"
