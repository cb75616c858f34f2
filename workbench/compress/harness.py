"""lm-evaluation-harness on the engine that serves a variant, with the arguments it is served with.

Source:  Gao et al., A framework for few-shot language model evaluation, doi 10.5281/zenodo.12608602.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from workbench.measure.vllm_scores import ScoringEngine

_METRICS = ("exact_match", "acc_norm", "acc", "f1", "bleu", "pass@1")
"""Which score of a sample counts, the first that the task has."""
_GENERATED_TOKENS = 256


def check_installed() -> None:
    """Refuse before any work what needs the harness.

    Raises:  InputError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise InputError(
            "--benchmarks needs lm-evaluation-harness",
            remedy="pip install 'llm-workbench[evals]'",
        )


def run_benchmarks(
    engine: ScoringEngine,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include: Path | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Run tasks of lm-evaluation-harness.

    Args:    limit: samples of each task; None is all.
             include: folder with task definitions of your own.
    Returns: task -> score of each sample, in the order of the task's documents.
    Raises:  InputError: an unknown task, one whose data cannot be had, or one without such a score.
    """
    check_installed()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise InputError(
            f"benchmarks(={unknown}) are unknown to lm-evaluation-harness",
            remedy="`lm-eval ls tasks` lists them; --include adds a folder of your own.",
        )
    try:
        done = simple_evaluate(
            _model(engine, tokenizer),
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=True,
        )
    except (OSError, ConnectionError) as error:
        raise InputError(
            f"benchmarks(={list(tasks)}) cannot be had: {str(error).strip().splitlines()[0]}",
            remedy="Their data come from the hub; without network use --include and local files.",
        ) from error
    return {name: _scores(name, samples) for name, samples in done["samples"].items()}


def _scores(task: str, samples: list[dict[str, Any]]) -> NDArray[np.float64]:
    name = next((metric for metric in _METRICS if metric in samples[0]), None)
    if name is None:
        raise InputError(
            f"benchmark(={task!r}) has none of the scores {', '.join(_METRICS)}",
            remedy="Take a task that scores each sample.",
        )
    # Tasks with several filters list each sample once for every filter.
    first = samples[0].get("filter")
    chosen = [sample for sample in samples if sample.get("filter") == first]
    chosen.sort(key=lambda sample: sample["doc_id"])
    return np.array([float(sample[name]) for sample in chosen])


def _model(engine: ScoringEngine, tokenizer: Any) -> Any:
    from lm_eval.api.model import TemplateLM

    room = engine.engine_args.max_model_len

    class Served(TemplateLM):  # type: ignore[misc]
        """The harness's view of the engine."""

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def max_gen_toks(self) -> int:
            return min(_GENERATED_TOKENS, room // 2)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
        ) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
        ) -> list[tuple[float, bool]]:
            # Of what is too long the beginning goes.
            rows = [(context + wanted)[-(room - 1) :] for _, context, wanted in requests]
            found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
            for i, scores in engine.score(rows, top=1):
                n = min(len(requests[i][2]), len(scores.logp))
                likeliest = scores.top_ids[-n:, 0] == np.array(rows[i][-n:])
                found[i] = float(scores.logp[-n:].sum()), bool(likeliest.all())
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            pairs = [(None, [self.eot_token_id], self.tok_encode(r.args[0])) for r in requests]
            return [score for score, _ in self._loglikelihood_tokens(pairs)]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            found = [""] * len(requests)
            alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
            for i, request in enumerate(requests):
                until = request.args[1].get("until") or ()
                stop = (until,) if isinstance(until, str) else tuple(until)
                most = int(request.args[1].get("max_gen_toks", self.max_gen_toks))
                alike.setdefault((stop, min(most, room // 2)), []).append(i)
            for (stop, most), chosen in alike.items():
                prompts = [self.tok_encode(requests[i].args[0])[-(room - most) :] for i in chosen]
                answers = engine.answer(prompts, most, stop)
                texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
                for i, text in zip(chosen, texts, strict=True):
                    found[i] = min((text.split(end)[0] for end in stop), key=len, default=text)
            return found

    return Served()
