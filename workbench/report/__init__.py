"""One self-contained HTML page from the results of a pipeline run.

The figures are functions that return plotly figures, for notebooks as well:
`from workbench.report import figures, fleet_figures`.
"""

from __future__ import annotations

from workbench.report.data import ReportData
from workbench.report.page import report

__all__ = ["ReportData", "report"]
