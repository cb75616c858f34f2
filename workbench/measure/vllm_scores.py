"""What a model says under real vLLM: log-probabilities of given tokens, and greedy answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import EngineError
from serving.plan import EngineArgs, Variant
from workbench.measure.engine import OnProgress
from workbench.measure.failure import telling_line
from workbench.measure.vllm_offline import OfflineEngine


class Scores(NamedTuple):
    """Of one sequence of n + 1 tokens, each but the first given those before it."""

    logp: NDArray[np.float32]  # (n,) of the token that stands there, nats
    top_ids: NDArray[np.int32]  # (n, k) the k likeliest tokens, the likeliest first
    top_logp: NDArray[np.float32]  # (n, k)


class ScoringEngine(OfflineEngine):
    """Offline vLLM that scores text and answers questions, one step loop for both.

    Args:    top: how many of the likeliest tokens are read at each position.
    """

    def __init__(self, variant: Variant, engine_args: EngineArgs, *, top: int = 256) -> None:
        super().__init__(variant, engine_args)
        self._top = top

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "max_logprobs": self._top}

    @property
    def top(self) -> int:
        """How many of the likeliest tokens are read: all of a small vocabulary."""
        vocabulary = int(self._engine.vllm_config.model_config.get_vocab_size())
        return min(self._top, vocabulary)

    def score(
        self,
        rows: Sequence[Sequence[int]],
        *,
        top: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, Scores]]:
        """Yield the number of each row and its scores, in the order in which they come.

        vLLM would make an object of each number; here they stay the arrays that its engine sends.

        Args:    rows: token ids, two or more in each.
                 top: fewer of the likeliest tokens than the engine was started for.
        """
        from vllm import SamplingParams

        core, found = self._engine.engine_core, list[tuple[int, Scores]]()
        original = core.get_output

        def get_output() -> Any:
            outputs = original()
            for output in outputs.outputs:
                tensors = output.new_prompt_logprobs_tensors
                if tensors is not None:
                    output.new_prompt_logprobs_tensors = None
                    found.append((_number(output.request_id), _scores(tensors)))
            return outputs

        core.get_output = get_output
        parameters = SamplingParams(max_tokens=1, prompt_logprobs=top or self.top, detokenize=False)
        done = 0
        try:
            for _ in self._steps(rows, parameters):
                done += len(found)
                yield from found
                found.clear()
                if on_progress is not None:
                    on_progress(f"scoring text with {self.variant.name}", done / len(rows))
        finally:
            del core.get_output

    def answer(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str] = ()
    ) -> list[list[int]]:
        """The greedy answer to each prompt, up to the model's own end or one of the stops."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            # Only text can be searched for a stop.
            detokenize=bool(stop),
            stop=list(stop) or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        answers: list[list[int]] = [[] for _ in prompts]
        for output in self._steps(prompts, parameters):
            if output is not None and output.finished:
                answers[_number(output.request_id)] = list(output.outputs[0].token_ids)
        return answers

    def _steps(self, prompts: Sequence[Sequence[int]], parameters: Any) -> Iterator[Any]:
        """Run prompts through the engine; yields each output, and None after each step."""
        longest = max(map(len, prompts)) + parameters.max_tokens
        if longest > self.engine_args.max_model_len:
            raise EngineError(
                f"{longest} tokens exceed max_model_len(={self.engine_args.max_model_len})",
                remedy="Raise max_model_len, or judge on shorter text.",
            )
        for number, prompt in enumerate(prompts):
            self._engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, parameters)
        try:
            while self._engine.has_unfinished_requests():
                yield from self._engine.step()
                yield None
        except RuntimeError as error:
            raise EngineError(
                f"vLLM died: {type(error).__name__}: {telling_line(str(error))}",
                remedy="Lower max_num_batched_tokens or the memory of the KV cache.",
            ) from error


def _number(request_id: str) -> int:
    """vLLM adds letters of its own to the id of a request."""
    return int(request_id.split("-")[0])


def _scores(tensors: Any) -> Scores:
    ids, logp = tensors.logprob_token_ids, tensors.logprobs
    return Scores(
        logp[:, 0].float().numpy(),
        ids[:, 1:].int().numpy(),
        logp[:, 1:].float().numpy(),
    )
