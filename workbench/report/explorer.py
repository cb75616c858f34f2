"""Pick a promise and a traffic, see the fleet: an answer at once, with sliders where a kernel runs.

What one replica shows is simulated once, at some rates; after that every promise and every peak is
arithmetic. So the fleet is the least that the rate asks for: replicas that start in no time, at the
right moment. What an autoscaler makes of it is asked of `simulate` and `tune`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from serving.errors import InputError
from serving.plan import EngineArgs, Slo
from simulations import theme
from simulations.bounds import saturation_rps
from simulations.figures import day_canvas
from simulations.latency import LatencyModel
from simulations.plan_model import replica_under
from simulations.profiles import PROFILES
from simulations.traffic import Day, Workload
from workbench.report.fleet_figures import METRIC_NAMES

if TYPE_CHECKING:
    import plotly.graph_objects as go

_RATES = 24
_MOMENTS = 24 * 12
_PROFILE = "servegen-deepseek-r1-10min"
_STILL_S = 0.25
"""A slider has to rest for so long before the fleet is worked out again."""


@dataclass(frozen=True, repr=False)
class Fleet:
    """The least that a day asks for.

    Attributes:
        slo: what every replica keeps.
        sustained_rps: what one replica takes within it; 0 where even the lightest load breaks it.
        day: t_s, offered_rps, replicas (with one more than the rate asks for; 0 where nothing helps).
        usd_per_hour: of one GPU.
    """

    slo: Slo
    sustained_rps: float
    day: pd.DataFrame
    usd_per_hour: float

    @property
    def gpu_hours(self) -> float:
        """Held in 24 hours by replicas that come and go with the rate."""
        return float(24 * self.day["replicas"].mean())

    @property
    def peak_gpu_hours(self) -> float:
        """Held in 24 hours by a fleet that is sized for the busiest moment."""
        return float(24 * self.day["replicas"].max())

    def __str__(self) -> str:
        limits = self.slo.limits().items()
        promise = " and ".join(f"{METRIC_NAMES[name]} {1e3 * at:.4g} ms" for name, at in limits)
        if not self.sustained_rps:
            return f"No replica keeps {promise}, however light the load."
        least, most = self.day["replicas"].min(), self.day["replicas"].max()
        return (
            f"Within {promise} a replica takes {self.sustained_rps:.1f} requests a second."
            f" The day asks for {least:.0f} to {most:.0f} replicas: {self.gpu_hours:.0f} GPU hours"
            f" ({self.gpu_hours * self.usd_per_hour:,.0f} USD), where a fleet for the peak holds"
            f" {self.peak_gpu_hours:.0f} ({self.peak_gpu_hours * self.usd_per_hour:,.0f} USD)."
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"

    def plot(self) -> go.Figure:
        """Offered rate above, the replicas that it asks for below."""
        figure = day_canvas("The least that the day asks for", self.day)
        for name, replicas, colour, dash in (
            ("following the rate", self.day["replicas"], theme.BLUE, "solid"),
            (
                "sized for the peak",
                np.full(len(self.day), self.day["replicas"].max()),
                theme.ORANGE,
                "dash",
            ),
        ):
            figure.add_scatter(
                x=self.day["t_s"] / 3600,
                y=replicas,
                name=name,
                yaxis="y2",
                line={"color": colour, "dash": dash, "width": 2, "shape": "hv"},
                hovertemplate="%{y:.0f} replicas",
            )
        return figure


class Explorer:
    """What one replica shows at each rate, and from it the fleet of any promise and any day.

    Args:    workload: its lengths; the arrivals are picked later.
             usd_per_hour: of one GPU.
    """

    def __init__(
        self,
        workload: Workload,
        latency: LatencyModel,
        engine: EngineArgs,
        *,
        usd_per_hour: float = 2.5,
    ) -> None:
        self.usd_per_hour = usd_per_hour
        self.replica = replica_at_rates(workload, latency, engine)
        """rate_rps, and the percentiles of the requests at it."""
        self._pending: Any = None

    def sustained_rps(self, slo: Slo) -> float:
        """The highest rate within every limit, linear between the rates that were simulated."""
        rates = np.concatenate([[0.0], self.replica["rate_rps"]])
        kept = []
        for name, limit_s in slo.limits().items():
            # More load never makes a queue shorter: a dip between two draws is noise.
            values = np.maximum.accumulate(self.replica[name].to_numpy())
            if values[0] > limit_s:
                return 0.0
            kept.append(float(np.interp(limit_s, values, rates[1:])))
        return min(kept)

    def fleet(
        self,
        *,
        ttft_p99_s: float,
        tpot_p99_s: float,
        peak_rps: float,
        profile: str = _PROFILE,
    ) -> Fleet:
        """The fleet of a promise and of a published day.

        Raises:  InputError: no such profile.
        """
        if profile not in PROFILES:
            raise InputError(
                f"profile(={profile!r}) is not known", remedy=f"Take one of {sorted(PROFILES)}."
            )
        slo = Slo(ttft_p99_s=ttft_p99_s, tpot_p99_s=tpot_p99_s)
        one = self.sustained_rps(slo)
        t_s = np.linspace(0, 86_400, _MOMENTS, endpoint=False)
        day = Day(profile=profile, peak_rps=peak_rps, burstiness=1.0)
        offered = day.rate_rps(t_s, 86_400.0)
        replicas = np.ceil(offered / one) if one else np.zeros(_MOMENTS)
        table = pd.DataFrame({"t_s": t_s, "offered_rps": offered, "replicas": replicas})
        return Fleet(slo, one, table, self.usd_per_hour)

    def show(self, **picked: Any) -> None:
        """Draw the fleet of what is picked (see `fleet`), then sliders that draw it again beneath.

        The figure stands by itself: what is stored of a notebook, or printed, needs no kernel.
        """
        from IPython.display import display

        found = self.fleet(**picked)
        display(found, found.plot())  # type: ignore[no-untyped-call]
        try:
            controls = self.controls(**picked)
        except ModuleNotFoundError:
            return
        display(controls)  # type: ignore[no-untyped-call]

    def controls(self, **picked: Any) -> Any:
        """Sliders for promise, peak and day, and an output that follows them once they rest."""
        import ipywidgets as widgets

        style = {"description_width": "11em"}
        wide = widgets.Layout(width="32em")

        def slider(text: str, low: float, high: float, step: float, value: float) -> Any:
            look = {"description": text, "style": style, "layout": wide, "readout_format": ".0f"}
            return widgets.FloatSlider(value, min=low, max=high, step=step, **look)

        chosen = {
            "ttft_p99_s": slider("TTFT p99 within (ms)", 50, 2000, 10, 1e3 * picked["ttft_p99_s"]),
            "tpot_p99_s": slider("TPOT p99 within (ms)", 8, 60, 1, 1e3 * picked["tpot_p99_s"]),
            "peak_rps": slider("peak (requests/s)", 5, 500, 5, picked["peak_rps"]),
            "profile": widgets.Dropdown(
                options=sorted(PROFILES),
                value=picked.get("profile", _PROFILE),
                description="day",
                style=style,
                layout=wide,
            ),
        }
        answer = widgets.Output()

        def draw() -> None:
            now = {name: one.value for name, one in chosen.items()}
            for name in ("ttft_p99_s", "tpot_p99_s"):
                now[name] /= 1e3
            found = self.fleet(**now)
            figure = {"application/vnd.plotly.v1+json": json.loads(found.plot().to_json())}
            shown = ({"text/html": found._repr_html_()}, figure)
            answer.outputs = tuple(
                {"output_type": "display_data", "data": data, "metadata": {}} for data in shown
            )

        for one in chosen.values():
            one.observe(lambda change: self._soon(draw), names="value")
        return widgets.VBox([*chosen.values(), answer])

    def _soon(self, draw: Callable[[], None]) -> None:
        """Call it when nothing else was asked for a moment; at once where no loop runs."""
        import asyncio

        if self._pending is not None:
            self._pending.cancel()
        try:
            self._pending = asyncio.get_running_loop().call_later(_STILL_S, draw)
        except RuntimeError:
            draw()


def replica_at_rates(
    workload: Workload, latency: LatencyModel, engine: EngineArgs, *, rates: int = _RATES
) -> pd.DataFrame:
    """Percentiles of one replica under Poisson load, from nearly idle to what it can answer at most.

    Returns: rate_rps and what `plan_model.replica_under` says, the lowest rate first.
    """
    most = saturation_rps(workload, latency, engine)
    rows = []
    for rate_rps in np.linspace(1 / rates, 1.0, rates) * most:
        found = replica_under(float(rate_rps), workload, latency, engine)
        rows.append({"rate_rps": float(rate_rps), **found})
    return pd.DataFrame(rows)
