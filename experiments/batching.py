"""Does a batch of 32 instead of 1 give five times the throughput? The answer, from a study's points.

    python -m experiments.batching [FOLDER] [--out batching.html]

FOLDER is what `workbench study experiments/batching.yaml` left; without it the results of an H100
that lie beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from simulations import theme
from workbench.measure.study import StudyResult, read_study
from workbench.progress import print_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

RESULTS = Path(__file__).parent / "results" / "h100" / "batching"
CLAIM = 5.0
"""Times the throughput that the article promises of batch 32 against 1."""


def answer(result: StudyResult) -> str:
    """One sentence with the figures."""
    found = result.gains(32, over=1)
    if found.empty:
        return "Batches 1 and 32 were not both measured."
    held = int((found["low"] > CLAIM).sum())
    missed = int((found["high"] < CLAIM).sum())
    return (
        f"Batch 32 gives {found['gain'].min():.1f} to {found['gain'].max():.1f} times the output"
        f" tokens a second of batch 1; of {len(found)} combinations {held} lie above"
        f" {CLAIM:g}x and {missed} below it with 95 % confidence."
    )


def figure(result: StudyResult) -> go.Figure:
    """Throughput over that of batch 1, by batch, with the article's claim as a line."""
    table = result.frame()
    batches = sorted(int(users) for users in table["batch"].dropna().unique())
    drawn = theme.canvas(
        "Output tokens per second, over those of batch 1",
        theme.batch_axis(batches),
        theme.log_axis("speed-up over batch 1 (×)", [1, 2 * max(batches)]),
    )
    keys = ["variant", "prompt_tokens", "output_tokens", *result.study.varied]
    gains = {users: result.gains(users, over=1).set_index(keys) for users in batches if users > 1}
    names = {
        key: _name(dict(zip(keys, key, strict=True))) for g in gains.values() for key in g.index
    }
    looks = theme.looks(names.values())
    for key, name in names.items():
        rows = {users: of.loc[key] for users, of in gains.items() if key in of.index}
        drawn.add_scatter(
            x=list(rows),
            y=[row["gain"] for row in rows.values()],
            name=name,
            mode="lines+markers",
            line={"color": looks[name].colour, "width": 2},
            marker={"symbol": looks[name].symbol, "size": 8},
            error_y=theme.error_bars(
                *([row[end] for row in rows.values()] for end in ("gain", "low", "high"))
            ),
            hovertemplate="batch %{x}: %{y:.2f}x",
        )
    theme.limit_line(drawn, CLAIM, "the article: 5x at batch 32")
    return drawn


def _name(combination: dict[str, object]) -> str:
    lengths = f"{combination.pop('prompt_tokens'):g} → {combination.pop('output_tokens'):g}"
    rest = [
        f"{value}" if key == "variant" else f"{key}={value}" for key, value in combination.items()
    ]
    return ", ".join([lengths, *rest])


def main() -> None:
    """Print the answer and its table, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("batching.html"))
    asked = parser.parse_args()
    result = read_study(asked.folder)
    print_table(result.gains(32, over=1))
    print(answer(result))
    for environment in sorted({m.environment.describe() for m in result.measurements}):
        print(f"measured on {environment}")
    figure(result).write_html(asked.out, config={"displayModeBar": False})
    print(f"figure: {asked.out}")


if __name__ == "__main__":
    main()
