"""Will the bundle run here, and is here what it was measured on? Checks over a machine probed once."""

from __future__ import annotations

from serving.doctor.bundle import Bundle
from serving.doctor.examine import diagnose, examine
from serving.doctor.finding import Finding, Findings, verdict
from serving.doctor.machine import Machine
from serving.doctor.probe import probe

__all__ = ["Bundle", "Finding", "Findings", "Machine", "diagnose", "examine", "probe", "verdict"]
