"""Fit: engine steps that were measured -> a LatencyModel, with its error on steps it has not seen."""

from workbench.fit.limits import check_range, fitted_max_num_seqs
from workbench.fit.model import fit

__all__ = ["check_range", "fit", "fitted_max_num_seqs"]
