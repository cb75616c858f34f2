"""`workbench compress`: the pipeline's stage, and each method by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.errors import InputError
from workbench.cli.common import (
    DEFAULT_WORKDIR,
    AsJson,
    Debug,
    Model,
    Seed,
    Workdir,
    display,
    guarded,
)
from workbench.cli.judging import app as judging_app
from workbench.cli.judging import judge_family, root_of, show_variants
from workbench.cli.pipelines import run_stages, settings_of
from workbench.cli.runs import tell_untracked, track
from workbench.cli.variants import FOLDER, names_in, variant_in, variants_in

if TYPE_CHECKING:
    from serving.plan import Variant

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
app.add_typer(judging_app)


def _schemes() -> list[str]:
    from workbench.compress.quantize import SCHEMES

    return list(SCHEMES)


From = Annotated[
    str | None,
    typer.Option(
        "--variant", help="Go on from this variant instead of a model.", autocompletion=names_in
    ),
]
Name = Annotated[
    str | None, typer.Option(help="Of the result.", show_default="by parent and method")
]
Calibration = Annotated[int, typer.Option(help="Rows of text that the method looks at.")]
FitText = Annotated[
    Path | None,
    typer.Option("--text", help="JSONL to fit to: text, messages, or question and answer."),
]
TaskShare = Annotated[
    float | None,
    typer.Option(
        help="Of those rows that hold the shipped tasks.", show_default="half; none beside --text"
    ),
]
NoJudge = Annotated[
    bool, typer.Option("--no-judge", help="Write the checkpoint only, also for another machine.")
]


@app.callback(
    epilog="Examples: workbench compress --recipes experiments/payoff-cpu.yaml · "
    "workbench compress quantize int4-awq · "
    "workbench compress chain prune:layers=1 distil:tokens=300000 int8-gptq"
)
@guarded
def compress(
    ctx: typer.Context,
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    seed: Seed = None,
    recipes: Annotated[
        Path | None,
        typer.Option(help="YAML: names and their steps.", show_default="INT8 and a student"),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make variants of a model and judge their quality; one method by itself with a command below."""
    if ctx.invoked_subcommand is not None:
        return
    from workbench.compress.recipe import read_recipes

    chosen = None if recipes is None else tuple(read_recipes(recipes))
    settings = settings_of(workdir, model=model, seed=seed, recipes=chosen)
    run_stages(workdir, settings, ["compress"], as_json=as_json)


@app.command(
    epilog="Examples: workbench compress quantize int8-smoothquant · "
    "workbench compress quantize fp8 --model meta-llama/Llama-3.1-8B-Instruct --no-judge"
)
@guarded
def quantize(
    scheme: Annotated[
        str,
        typer.Argument(
            help="fp32, fp16, bf16, int8-gptq, int8-smoothquant, int4-gptq, int4-awq, fp8,"
            " fp8-dynamic, fp8-kv, bnb-int8 or bnb-nf4.",
            autocompletion=_schemes,
        ),
    ],
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    variant: From = None,
    name: Name = None,
    calibration_sequences: Calibration = 64,
    seq_len: Annotated[int, typer.Option(help="Tokens in each row.")] = 256,
    text: FitText = None,
    task_share: TaskShare = None,
    seed: Annotated[int, typer.Option(help="Of the calibration text.")] = 0,
    no_judge: NoJudge = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fewer bits: INT8, INT4, FP8, bitsandbytes, or another float type."""
    fields = {
        "scheme": scheme,
        "calibration_sequences": calibration_sequences,
        "seq_len": seq_len,
        "text": text,
        "task_share": task_share,
        "seed": seed,
    }
    _make(
        workdir,
        model,
        variant,
        name,
        [{"step": "quantize", **fields}],
        judged=not no_judge,
        as_json=as_json,
    )


@app.command(epilog="Example: workbench compress prune --layers 1 --mlp-width 512 --kv-heads 1")
@guarded
def prune(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    variant: From = None,
    name: Name = None,
    layers: Annotated[int, typer.Option(help="Layers to take out.")] = 0,
    contiguous: Annotated[
        bool, typer.Option("--contiguous", help="Take them out as one run of neighbours.")
    ] = False,
    mlp_width: Annotated[int | None, typer.Option(help="Neurons left in each MLP.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads left in each layer.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Groups of heads left.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Channels left between layers.")] = None,
    calibration_sequences: Calibration = 64,
    text: FitText = None,
    task_share: TaskShare = None,
    seed: Annotated[int, typer.Option(help="Of the calibration text.")] = 0,
    no_judge: NoJudge = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take out what does least: layers, neurons, heads, channels; a smaller dense model is left."""
    fields = {
        "layers": layers,
        "contiguous": contiguous,
        "mlp_width": mlp_width,
        "heads": heads,
        "kv_heads": kv_heads,
        "hidden": hidden,
        "calibration_sequences": calibration_sequences,
        "text": text,
        "task_share": task_share,
        "seed": seed,
    }
    _make(
        workdir,
        model,
        variant,
        name,
        [{"step": "prune", **fields}],
        judged=not no_judge,
        as_json=as_json,
    )


@app.command(epilog="Example: workbench compress sparsify --pattern 2:4")
@guarded
def sparsify(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    variant: From = None,
    name: Name = None,
    sparsity: Annotated[float, typer.Option(help="Share of the weights that become 0.")] = 0.5,
    pattern: Annotated[str, typer.Option(help="unstructured or 2:4.")] = "unstructured",
    algorithm: Annotated[str, typer.Option(help="sparsegpt or wanda.")] = "sparsegpt",
    calibration_sequences: Calibration = 64,
    text: FitText = None,
    task_share: TaskShare = None,
    seed: Annotated[int, typer.Option(help="Of the calibration text.")] = 0,
    no_judge: NoJudge = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Zeros where weights matter least; for quality only, vLLM gains no speed from it."""
    fields = {
        "sparsity": sparsity,
        "pattern": pattern,
        "algorithm": algorithm,
        "calibration_sequences": calibration_sequences,
        "text": text,
        "task_share": task_share,
        "seed": seed,
    }
    _make(
        workdir,
        model,
        variant,
        name,
        [{"step": "sparsify", **fields}],
        judged=not no_judge,
        as_json=as_json,
    )


@app.command(
    epilog="Examples: workbench compress distil --variant pruned --tokens 600000 --snapshots 4 · "
    "workbench compress distil --config num_hidden_layers=2 --tokens 600000"
)
@guarded
def distil(
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    variant: From = None,
    name: Name = None,
    tokens: Annotated[int, typer.Option(help="That the student learns from.")] = 600_000,
    config: Annotated[
        str | None,
        typer.Option(help="Begin anew instead: NAME=VALUE of config.json, comma-separated."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of both distributions.")] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Only the teacher's likeliest tokens.", show_default="all")
    ] = None,
    hidden_weight: Annotated[
        float, typer.Option(help="Weight of the difference of hidden states.")
    ] = 0.0,
    label_weight: Annotated[
        float, typer.Option(help="Share of the loss that is on the text itself; 1 is no teacher.")
    ] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Rows in a step, over all processes.")] = 8,
    seq_len: Annotated[int, typer.Option(help="Tokens in each row.")] = 256,
    snapshots: Annotated[
        int, typer.Option(help="Students on the way to judge: recovery against tokens.")
    ] = 0,
    processes: Annotated[
        int | None, typer.Option(help="That train together.", show_default="one per GPU")
    ] = None,
    text: FitText = None,
    task_share: TaskShare = None,
    seed: Annotated[int, typer.Option(help="Order of the text, new weights.")] = 0,
    no_judge: NoJudge = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """A student learns the parent's logits; goes on after a crash where it was."""
    fields = {
        "tokens": tokens,
        "config": _pairs(config),
        "temperature": temperature,
        "top_k": top_k,
        "hidden_weight": hidden_weight,
        "label_weight": label_weight,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "snapshots": snapshots,
        "processes": processes,
        "text": text,
        "task_share": task_share,
        "seed": seed,
    }
    if variant is None and not config:
        raise InputError(
            "a student needs something to begin with",
            remedy="Give --variant, for example a pruned one, or --config num_hidden_layers=2.",
        )
    _make(
        workdir,
        model,
        variant,
        name,
        [{"step": "distil", **fields}],
        judged=not no_judge,
        as_json=as_json,
    )


@app.command(
    epilog="Example: workbench compress chain prune:layers=1,mlp_width=512 distil:tokens=300000"
    " int8-gptq --name small-int8"
)
@guarded
def chain(
    steps: Annotated[
        list[str], typer.Argument(help="prune:layers=1, distil:tokens=300000, int8-gptq, ...")
    ],
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    variant: From = None,
    name: Name = None,
    no_judge: NoJudge = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Several methods one after the other; each step's checkpoint is kept and judged."""
    _make(workdir, model, variant, name, steps, not no_judge, as_json=as_json)


def _make(
    workdir: Path,
    model: str | None,
    variant: str | None,
    name: str | None,
    steps: Sequence[Any],
    judged: bool,
    *,
    as_json: bool,
) -> None:
    """Make what the steps say, judge it, track it, show it."""
    from workbench.compress.quality import Ask
    from workbench.compress.recipe import check, make, recipe_of, snapshots_of
    from workbench.compress.steps import parse_step, step_of

    there = variants_in(workdir)
    begin = variant_in(workdir, variant) if variant else None
    parsed = [parse_step(s) if isinstance(s, str) else step_of(s) for s in steps]
    chosen = name or "-".join([*([variant] if variant else []), *(s.label() for s in parsed)])
    recipe = recipe_of(chosen, [step.model_dump() for step in parsed], "--name")
    if judged:
        check([recipe])
    root = root_of(begin, there) if begin else None
    with display(workdir, f"Compress to {chosen}", as_json=as_json) as on_progress:
        if root is None:
            from workbench.compress.variants import parent_of
            from workbench.settings import Settings

            on_progress("loading the parent", 0.0)
            root = parent_of(Settings(model=model).model_path())
            _remember(workdir, root, there)
        if chosen == root.name:
            raise InputError(
                f"--name(={chosen!r}) is the parent's own", remedy="Choose another with --name."
            )
        recipe = recipe.model_copy(update={"begins_with": begin.name if begin else None})
        made = make(
            [recipe],
            root,
            workdir / FOLDER,
            known=[begin] if begin else [],
            on_progress=lambda doing, share: on_progress(doing, 0.7 * share),
        )
    if judged:
        judge_family(workdir, root, [*made, *snapshots_of(made[-1])], Ask(), as_json=as_json)
        return
    track(workdir, lambda tracker: [tracker.variant(one) for one in made])
    tell_untracked(workdir)
    show_variants(workdir, [root, *made], as_json=as_json)


def _remember(workdir: Path, root: Variant, there: dict[str, Variant]) -> None:
    """Write the parent's card, so that what is made of it can be followed back to it."""
    from workbench.compress.recipe import CARD

    known = there.get(root.name)
    if known is not None and known.model != root.model:
        raise InputError(
            f"{workdir} holds variants of another model, {known.model}",
            remedy="Choose another --workdir for this one.",
        )
    if known is None:
        root.write(workdir / FOLDER / root.name / CARD)


def _pairs(text: str | None) -> dict[str, Any]:
    import yaml

    found = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(
                f"--config(={text!r}) has {part!r}", remedy="Write num_hidden_layers=2."
            )
        found[key.strip()] = yaml.safe_load(value)
    return found
