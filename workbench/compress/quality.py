"""What a variant keeps of its parent, scored by vLLM on the checkpoint that is served.

Text is scored sequence by sequence, questions are answered greedily; parent and variant get the same,
so intervals of what compares them are paired: bootstrap over sequences, Wilson's kind over answers.
vLLM runs in a process of its own: llmcompressor and it patch the same libraries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from serving.errors import ModelError
from serving.plan import EngineArgs, Quality, Variant
from serving.values import Estimate, Value
from workbench.apart import Child, Link
from workbench.compress.texts import Exam, Seen, exam
from workbench.measure.vllm_scores import Scores, ScoringEngine
from workbench.progress import OnProgress

Floats = NDArray[np.float64]
TOP = 256
"""Likeliest tokens that are read at each position."""
_BOOTSTRAP = 2000
Z = 1.959964
_TINY = 1e-9
_KNOWN_PARENTS = "parents"


class Ask(Value):
    """What to judge by.

    Attributes:
        tokens: of held-out text, at most.
        questions: how many with one right answer each, at most.
        text: JSONL with documents; None is the shipped held-out text.
        tasks: JSONL with question and answer; None is the shipped tasks.
        benchmarks: tasks of lm-evaluation-harness.
        limit: samples of each benchmark; None is all.
        include: folder with task definitions of your own.
    """

    tokens: int = Field(32_768, ge=512)
    questions: int = Field(500, ge=10)
    text: Path | None = None
    tasks: Path | None = None
    benchmarks: tuple[str, ...] = ()
    limit: int | None = Field(None, gt=0)
    include: Path | None = None
    seed: int = 0

    def key(self) -> str:
        """Digest, of the files' content too: a quality that has it answers what is asked."""
        asked = self.model_dump(mode="json")
        files = [path.read_text() for path in (self.text, self.tasks) if path and path.is_file()]
        return blake2b(json.dumps([asked, files]).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Answers:
    """What one model said at an exam.

    Attributes:
        logp: (n_rows, n) log-probability of each token that stands there, nats.
        top_ids, top_logp: (n_rows, n, k) the likeliest tokens, the likeliest first.
        right: (n_questions,) whether the answer was right.
        benchmarks: task -> score of each sample.
    """

    logp: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logp: NDArray[np.float32]
    right: NDArray[np.bool_]
    benchmarks: Mapping[str, Floats]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.stem}.partial.npz")
        benchmarks = {f"benchmark {task}": scores for task, scores in self.benchmarks.items()}
        np.savez(
            partial,
            logp=self.logp,
            top_ids=self.top_ids,
            top_logp=self.top_logp,
            right=self.right,
            **benchmarks,  # type: ignore[arg-type]
        )
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        with np.load(path) as found:
            named = {name: found[name] for name in found.files}
        benchmarks = {
            name.removeprefix("benchmark "): named.pop(name)
            for name in list(named)
            if name.startswith("benchmark ")
        }
        return cls(**named, benchmarks=benchmarks)


def judge(
    variants: Sequence[Variant],
    parent: Variant,
    ask: Ask = Ask(),  # noqa: B008  (frozen)
    *,
    engine_args: EngineArgs,
    cache: Path,
    on_progress: OnProgress | None = None,
) -> Iterator[Quality]:
    """Judge variants against their parent on text and questions that none of them was fitted to.

    Args:    engine_args: to serve them with; what belongs to a variant is added.
             cache: folder where what a parent said is kept for the next time.
    Returns: one Quality per variant, in their order, each as soon as it is known.
    Raises:  InputError: files that are none, or nothing left that was not seen in fitting.
             EngineError: vLLM does not serve one of them.
    """
    with Child(_judge_apart, list(variants), parent, ask, engine_args, cache) as child:
        for message in child:
            if isinstance(message, Quality):
                yield message
            elif on_progress is not None:
                on_progress(*message)


def _judge_apart(
    link: Link,
    variants: list[Variant],
    parent: Variant,
    ask: Ask,
    engine_args: EngineArgs,
    cache: Path,
) -> None:
    tokenizer = _tokenizer(parent)
    seen = Seen.of([])
    for variant in (parent, *variants):
        seen |= Seen.read(variant.model)
    paper = exam(
        tokenizer,
        tokens=ask.tokens,
        questions=ask.questions,
        seed=ask.seed,
        seen=seen,
        text=ask.text,
        tasks=ask.tasks,
    )
    parts = len(variants) + 1
    # Quality does not depend on the room that loads need.
    room = max(engine_args.max_model_len, paper.longest)
    engine_args = engine_args.model_copy(update={"max_model_len": room})

    def sit(variant: Variant, number: int) -> Answers:
        def say(doing: str, share: float) -> None:
            link.send((doing, (number + share) / parts))

        return _sit(variant, paper, ask, engine_args, tokenizer, say)

    known = cache / _KNOWN_PARENTS / f"{_digest(parent, paper, ask, engine_args)}.npz"
    if known.exists():
        theirs = Answers.read(known)
    else:
        theirs = sit(parent, 0)
        theirs.write(known)
    for number, variant in enumerate(variants, start=1):
        same = variant.model == parent.model and variant.engine == parent.engine
        own = theirs if same else sit(variant, number)
        link.send(quality_of(own, theirs, paper.described, ask))


def quality_of(
    own: Answers, theirs: Answers, described: str = "", ask: Ask | None = None
) -> Quality:
    """Compare what a variant said with what its parent said."""
    rng = np.random.default_rng(ask.seed if ask else 0)
    n = own.logp.shape[1] * np.ones(len(own.logp))
    loss, parents_loss = (-said.logp.astype(float).sum(axis=1) for said in (own, theirs))
    agree = (own.top_ids[..., 0] == theirs.top_ids[..., 0]).sum(axis=1)
    kl = np.array([_kl(theirs, own, row).sum() for row in range(len(own.logp))])
    return Quality(
        perplexity=bootstrap(loss, n, rng, np.exp),
        perplexity_ratio=bootstrap(loss - parents_loss, n, rng, np.exp),
        agreement=bootstrap(agree, n, rng),
        kl_nats=bootstrap(kl, n, rng),
        task_accuracy=mean_of(own.right, rng),
        recovery=recovery_of(own.right, theirs.right, rng),
        benchmarks={task: mean_of(scores, rng) for task, scores in own.benchmarks.items()},
        benchmark_recovery={
            task: recovery_of(scores, theirs.benchmarks[task], rng)
            for task, scores in own.benchmarks.items()
        },
        judged_on=described,
        asked=ask.key() if ask else "",
    )


def mean_of(scores: Any, rng: np.random.Generator) -> Estimate:
    """A mean score: of right and wrong with Wilson's interval, of anything else by bootstrap.

    A bootstrap of scores that are all alike has no width, as if more questions could not differ.
    """
    scores = np.asarray(scores, float)
    if not _is_binary(scores):
        return bootstrap(scores, np.ones(len(scores)), rng)
    low, high = _wilson(scores.sum(), len(scores), Z)
    return _estimate(float(scores.mean()), low, high, len(scores))


def recovery_of(own: Any, theirs: Any, rng: np.random.Generator) -> Estimate:
    """Score over the parent's on the same samples, 1 where the parent has none.

    Of right and wrong answers: the hybrid Wilson interval for a ratio of paired proportions, which
    stays honest where both answer alike. Of anything else a paired bootstrap.

    Args:    own, theirs: (n,) score of each sample.
    Source:  Bonett & Price, Confidence intervals for a ratio of binomial proportions based on paired
             data, Statistics in Medicine 25 (2006), doi 10.1002/sim.2440.
    """
    own, theirs = np.asarray(own, float), np.asarray(theirs, float)
    if not theirs.sum():
        return _estimate(1.0, 0.0, 1.0, len(own))
    if not (_is_binary(own) and _is_binary(theirs)):
        return bootstrap(own, theirs, rng)
    ours, parents = own.sum(), theirs.sum()
    either, differ = (np.maximum(own, theirs)).sum(), (own != theirs).sum()
    p, q = ((x + 1) / (either + 2) for x in (ours, parents))
    spread = np.sqrt((differ + 2) / ((ours + 1) * (parents + 1)))
    apart = np.sqrt((1 - p) / (ours + 1)) + np.sqrt((1 - q) / (parents + 1))
    z = Z * float(spread / apart)
    (low, high), (parents_low, parents_high) = (_wilson(x, either, z) for x in (ours, parents))
    return _estimate(float(ours / parents), low / parents_high, high / parents_low, len(own))


def _is_binary(scores: Floats) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _wilson(successes: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a proportion."""
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)


def _estimate(value: float, low: float, high: float, n: int) -> Estimate:
    # Rounding must not put the value itself outside.
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n)


def bootstrap(
    totals: Any,
    counts: Any,
    rng: np.random.Generator,
    transform: Callable[[Any], Any] | None = None,
) -> Estimate:
    """Ratio of two sums over the same units, with its 95 % percentile interval.

    Units are drawn with both of their numbers, so a ratio of two models' scores is paired. Where a
    draw has nothing to divide by it is left out.
    """
    totals, counts = np.asarray(totals, float), np.asarray(counts, float)
    apply = transform or (lambda x: x)
    picked = rng.integers(0, len(totals), (_BOOTSTRAP, len(totals)))
    drawn, over = totals[picked].sum(axis=1), counts[picked].sum(axis=1)
    draws = apply(drawn[over != 0] / over[over != 0])
    low, high = np.percentile(draws, [2.5, 97.5])
    value = float(apply(totals.sum() / counts.sum()))
    return _estimate(value, float(low), float(high), len(totals))


def _kl(theirs: Answers, own: Answers, row: int) -> Floats:
    """(n,) KL(parent || variant) of each position, at least, over tokens that both lists name.

    All others are one event, and merging events never raises a divergence: what is not in both lists
    of the likeliest can only make it larger than this.
    """
    p_ids, q_ids = theirs.top_ids[row].astype(np.int64), own.top_ids[row].astype(np.int64)
    n, k = p_ids.shape
    stride = max(int(p_ids.max()), int(q_ids.max())) + 1
    offset = np.arange(n)[:, None] * stride
    order = np.argsort(q_ids + offset, axis=None)
    keys = (q_ids + offset).ravel()[order]
    at = np.searchsorted(keys, (p_ids + offset).ravel()).clip(max=len(keys) - 1)
    common = (keys[at] == (p_ids + offset).ravel()).reshape(n, k)
    logp = theirs.top_logp[row].astype(float)
    logq = own.top_logp[row].astype(float).ravel()[order][at].reshape(n, k)
    p, q = (np.where(common, np.exp(x), 0.0) for x in (logp, logq))
    inside = np.where(common, p * (logp - logq), 0.0).sum(axis=1)
    p_rest, q_rest = ((1 - x.sum(axis=1)).clip(min=_TINY) for x in (p, q))
    kl: Floats = (inside + p_rest * np.log(p_rest / q_rest)).clip(min=0.0)
    return kl


def _sit(
    variant: Variant,
    paper: Exam,
    ask: Ask,
    engine_args: EngineArgs,
    tokenizer: Any,
    say: OnProgress,
) -> Answers:
    say(f"starting vLLM with {variant.name}", 0.0)
    with ScoringEngine(variant, engine_args.serving(variant), top=TOP) as engine:
        said: dict[int, Scores] = dict(
            engine.score(paper.rows, on_progress=lambda doing, share: say(doing, 0.2 + 0.4 * share))
        )
        say(f"asking {variant.name}", 0.6)
        answers = engine.answer(paper.prompts, paper.answer_tokens)
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        benchmarks: dict[str, Floats] = {}
        if ask.benchmarks:
            from workbench.compress.harness import run_benchmarks

            say(f"benchmarks with {variant.name}", 0.7)
            benchmarks = run_benchmarks(
                engine, tokenizer, ask.benchmarks, limit=ask.limit, include=ask.include
            )
    rows = [said[i] for i in range(len(paper.rows))]
    return Answers(
        logp=np.stack([row.logp for row in rows]),
        top_ids=np.stack([row.top_ids for row in rows]),
        top_logp=np.stack([row.top_logp for row in rows]),
        right=np.array([t.strip() == a for t, a in zip(texts, paper.answers, strict=True)]),
        benchmarks=benchmarks,
    )


def _tokenizer(variant: Variant) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(variant.model, revision=variant.revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load the tokenizer of model(={variant.model!r}):"
            f" {str(error).strip().splitlines()[0]}",
            remedy="Give a folder made by save_pretrained, or a hub id.",
        ) from error


def _digest(parent: Variant, paper: Exam, ask: Ask, engine_args: EngineArgs) -> str:
    """Of everything that a parent's answers depend on; of its files their names, sizes and times."""
    files = [
        (f.name, f.stat().st_size, f.stat().st_mtime_ns)
        for f in sorted(Path(parent.model).glob("*"))
        if f.is_file()
    ]
    served = engine_args.serving(parent).model_dump_json()
    what = [parent.model, parent.revision, files, served, paper.key, ask.benchmarks, ask.limit, TOP]
    return blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()
