"""The base of every value of traffic."""

from __future__ import annotations

from pydantic import ConfigDict

from serving.values import Value


class Finite(Value):
    """A value whose numbers are finite: no rate is infinite or NaN."""

    model_config = ConfigDict(allow_inf_nan=False)
