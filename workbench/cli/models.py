"""`workbench model`: text to train on, and a small chat model trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import Debug, guarded

app = typer.Typer(help="The small chat model that the demo uses.", no_args_is_help=True)


@app.command(
    "texts",
    epilog="Example: workbench model texts --out texts .venv/lib/python3.12/site-packages/sympy",
)
@guarded
def texts(
    folders: Annotated[list[Path], typer.Argument(help="With source and prose below them.")],
    out: Annotated[Path, typer.Option(help="Folder for train.jsonl and heldout.jsonl.")],
    debug: Debug = False,
) -> None:
    """Make text to train on from folders: files of source and prose, split, nothing twice."""
    from workbench.compress.collect import collect
    from workbench.progress import Stages

    with Stages(["Collect text"]) as stages, stages.stage("Collect text") as say:
        told = collect(folders, out, on_progress=say)
    typer.echo(", ".join(f"{what.replace('_', ' ')} {n:,}" for what, n in told.items()))
    typer.echo(
        f"Next: workbench model train --text {out}/train.jsonl --heldout {out}/heldout.jsonl"
    )


@app.command(
    "train",
    epilog="Examples: workbench model train --out my-model --seed 1 · workbench model train --out big "
    "--layers 16 --hidden 768 --mlp 2048 --heads 12 --kv-heads 4 --vocab 8192 --text texts/train.jsonl "
    "--heldout texts/heldout.jsonl",
)
@guarded
def train(
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    text: Annotated[
        Path | None, typer.Option(help="JSONL to train on.", show_default="the standard library")
    ] = None,
    heldout: Annotated[Path | None, typer.Option(help="JSONL to judge on, with --text.")] = None,
    layers: Annotated[int, typer.Option(min=1)] = 4,
    hidden: Annotated[int, typer.Option(min=1, help="Width between layers.")] = 256,
    mlp: Annotated[int, typer.Option(min=1, help="Width of each MLP.")] = 768,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    kv_heads: Annotated[int, typer.Option(min=1, help="Heads of keys and values.")] = 2,
    vocab: Annotated[int, typer.Option(min=1, help="Tokens in the vocabulary.")] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 16,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens in a row.")] = 256,
    task_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the rows with tasks.")
    ] = 0.5,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    baseline: Annotated[
        bool, typer.Option(help="Fit n-grams to compare with; minutes with much text.")
    ] = True,
    debug: Debug = False,
) -> None:
    """Train a small chat model on text and generated tasks; resumes after a crash."""
    from workbench.model.shape import ModelShape
    from workbench.model.train import train as train_model
    from workbench.progress import Stages

    extra: dict[str, Any] = {} if steps is None else {"steps": steps}
    with Stages(["Train the model"]) as stages, stages.stage("Train the model") as say:

        def on_progress(step: int, total: int, loss: float, tokens_per_s: float) -> None:
            doing = f"step {step}/{total}, loss {loss:.2f}, {tokens_per_s:,.0f} tokens/s"
            say(doing, step / max(total, 1))

        folder = train_model(
            out,
            seed=seed,
            device=device,
            config=ModelShape(hidden, layers, heads, kv_heads, mlp, vocab),
            on_progress=on_progress,
            batch_size=batch_size,
            seq_len=seq_len,
            task_share=task_share,
            text=text,
            heldout=heldout,
            save_every=save_every,
            baseline=baseline,
            **extra,
        )
    if text is not None:
        from workbench.compress.texts import seen_file

        seen_file(text).write(folder)  # what it is judged on leaves out what it was trained on
    typer.echo(f"Wrote {folder}. Next: workbench demo --model {folder}")
