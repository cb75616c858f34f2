"""Requests of a run as MLflow traces: a sample, each with its spans as the client measured them.

They are made from the measurement after the run, so tracing costs the requests nothing. They stand on
the wall clock as system metrics do: it is known to the second when a measurement began.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.track.system import span_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Span

    from workbench.measure import Measurement

MOST = 100
"""Of one run: a page of `mlflow ui`, and seconds of writing."""
_OF_A_KIND = 20
"""Failed requests, and slowest ones, that are kept before an even sample of the others."""
_FIGURES = (
    *("prompt_tokens", "asked_output_tokens", "output_tokens"),
    *("ttft_s", "tpot_s", "e2e_s"),
)
_SPANS = (
    ("wait to be sent", "scheduled_s", "sent_s"),
    ("TTFT", "sent_s", "first_token_s"),
    ("decode", "first_token_s", "end_s"),
)


@dataclass(frozen=True)
class Traced:
    """One request. Times are nanoseconds since 1970.

    Attributes:
        chosen: why it is in the sample: failed, slowest or even.
        spans: (name, begin, end), of what happened.
        figures: its lengths in tokens, and its latencies in seconds.
        error: None where it was answered.
    """

    number: int
    chosen: str
    begin_ns: int
    end_ns: int
    spans: tuple[tuple[str, int, int], ...]
    figures: Mapping[str, float]
    error: str | None


def traced(measurement: Measurement) -> tuple[Traced, ...]:
    """A sample of the requests that count, in the order in which they were scheduled."""
    begin_ms, _ = span_ms(measurement)
    requests = measurement.requests[measurement.requests["counted"]]
    table = requests.join(measurement.latencies()[["ttft_s", "tpot_s", "e2e_s"]])
    chosen = sample(table)
    rows = table.loc[list(chosen)].sort_values("scheduled_s", kind="stable")
    return tuple(
        _traced({str(name): value for name, value in row.items()}, chosen[at], begin_ms)
        for at, row in zip(rows.index, rows.to_dict("records"), strict=True)
    )


def sample(requests: pd.DataFrame, most: int = MOST) -> dict[int, str]:
    """Which rows are traced, and why: what failed, the slowest, and an even sample of the others."""
    failed = requests["error"].notna()
    took_s = (requests["end_s"] - requests["scheduled_s"])[~failed]
    chosen = dict.fromkeys(requests.index[failed][:_OF_A_KIND], "failed")
    chosen |= dict.fromkeys(took_s.nlargest(_OF_A_KIND).index, "slowest")
    others = requests.drop(index=list(chosen)).sort_values("scheduled_s", kind="stable").index
    room = min(len(others), most - len(chosen))
    evenly = np.linspace(0, len(others) - 1, room).round().astype(int)
    return chosen | dict.fromkeys(others[evenly], "even")


def _traced(row: Mapping[str, Any], chosen: str, begin_ms: int) -> Traced:
    def at_ns(time_s: float) -> int:
        return begin_ms * 10**6 + round(time_s * 1e9)

    spans = tuple(
        (name, at_ns(row[begin]), at_ns(row[end]))
        for name, begin, end in _SPANS
        if row[end] > row[begin]  # False where one of them never was
    )
    times = [row[name] for name in ("scheduled_s", "sent_s", "first_token_s", "end_s")]
    seen = [at_ns(time_s) for time_s in times if not pd.isna(time_s)]
    figures = {name: row[name] for name in _FIGURES if not pd.isna(row[name])}
    return Traced(
        number=int(row["request_id"]),
        chosen=chosen,
        begin_ns=min(seen),
        end_ns=max(seen),
        spans=spans,
        figures=figures,
        error=None if pd.isna(row["error"]) else str(row["error"]),
    )


def write(client: MlflowClient, experiment_id: str, run_id: str, traces: Sequence[Traced]) -> None:
    """Add traces to a run, those with the same number in place of those that are there.

    Not by MLflow's decorators and spans: they time what runs now, write to one store per process, and
    keep quiet about what they could not write.

    Raises:  what the store raises; NotImplementedError: it takes no traces.
    """
    from mlflow.tracing.client import TracingClient

    keys = [
        hashlib.sha256(f"{run_id}/{trace.number}".encode()).hexdigest()[:32] for trace in traces
    ]
    spans = [span for trace, key in zip(traces, keys, strict=True) for span in _spans(trace, key)]
    TracingClient(client.tracking_uri).log_spans(experiment_id, spans)
    client.link_traces_to_run([f"tr-{key}" for key in keys], run_id)


def _spans(trace: Traced, key: str) -> Iterator[Span]:
    """The request and, under it, its parts."""
    from mlflow.entities import Span

    root = key[:16]
    whole = {
        **trace.figures,
        "mlflow.traceTag.chosen": trace.chosen,
        "mlflow.traceTag.mlflow.traceName": f"request {trace.number}",
        "mlflow.spanType": "LLM",
        "mlflow.spanInputs": _asked(trace),
        "mlflow.spanOutputs": _answered(trace),
        "mlflow.chat.tokenUsage": _usage(trace),
    }
    parts = [(f"request {trace.number}", trace.begin_ns, trace.end_ns), *trace.spans]
    for number, (name, begin_ns, end_ns) in enumerate(parts):
        attributes = {"mlflow.traceRequestId": f"tr-{key}", **({} if number else whole)}
        failed = trace.error is not None and number == 0
        yield Span.from_dict(
            {
                "trace_id": f"tr-{key}",
                "span_id": root if number == 0 else f"{int(root, 16) ^ number:016x}",
                "parent_span_id": root if number else None,
                "name": name,
                "start_time_unix_nano": begin_ns,
                "end_time_unix_nano": end_ns,
                "status": {
                    "code": "STATUS_CODE_ERROR" if failed else "STATUS_CODE_OK",
                    "message": trace.error or "",
                },
                "attributes": {k: json.dumps(value) for k, value in attributes.items()},
            }
        )


def _asked(trace: Traced) -> str:
    asked, prompt = (trace.figures.get(n, 0) for n in ("asked_output_tokens", "prompt_tokens"))
    return f"{trace.number} ({trace.chosen}): {prompt:g} tokens, {asked:g} asked for"


def _answered(trace: Traced) -> str:
    if trace.error is not None:
        return trace.error
    tokens, first_s, all_s = (trace.figures[n] for n in ("output_tokens", "ttft_s", "e2e_s"))
    return f"{tokens:g} tokens in {all_s:.3g} s, the first after {first_s:.3g} s"


def _usage(trace: Traced) -> dict[str, int]:
    read, written = (int(trace.figures.get(n, 0)) for n in ("prompt_tokens", "output_tokens"))
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
