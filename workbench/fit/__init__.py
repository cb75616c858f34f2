"""Fit: engine steps that were measured -> a LatencyModel, with its error on steps it has not seen."""

from workbench.fit.device import DeviceCard, Efficiency, assume, card_of
from workbench.fit.explain import check
from workbench.fit.model import fit

__all__ = [
    "DeviceCard",
    "Efficiency",
    "assume",
    "card_of",
    "check",
    "fit",
]
