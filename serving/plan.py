"""The Plan: one frozen object that is simulated, shipped and verified."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from serving.gateway.spec import GatewaySpec
from serving.hpa import HpaSpec
from serving.values import Estimate, Value


class Quality(Value):
    """What a variant keeps of its parent, on text and questions that neither was fitted to.

    Scored by vLLM on the checkpoint that is served; intervals are 95 %, those that compare with the
    parent paired.
    """

    perplexity: Estimate
    perplexity_ratio: Estimate
    """Perplexity over the parent's on the same text: 1 loses nothing."""
    agreement: Estimate
    """Share of positions where the most likely next token is the parent's."""
    kl_nats: Estimate
    """KL(parent || variant) per token; exact where all of the vocabulary was read, else a floor."""
    task_accuracy: Estimate
    recovery: Estimate
    """Task accuracy over the parent's on the same questions."""
    benchmarks: dict[str, Estimate] = Field(default_factory=dict)
    """Score of each task of lm-evaluation-harness."""
    benchmark_recovery: dict[str, Estimate] = Field(default_factory=dict)
    """Score over the parent's on the same samples."""
    judged_on: str = ""
    """Which text and questions, and how many were left out because the variant had seen them."""
    asked: str = ""
    """Digest of what it was to be judged by."""

    @property
    def worst_recovery(self) -> float:
        """The lowest recovery, of the tasks and of every benchmark."""
        everything = (self.recovery, *self.benchmark_recovery.values())
        return min(score.value for score in everything)

    def verdict(self, max_loss: float) -> Literal["keeps", "in doubt", "loses"]:
        """Whether the variant keeps at least 1 - max_loss of the parent's score.

        In doubt is what its interval does not decide; of several benchmarks the worst counts.
        """
        everything = (self.recovery, *self.benchmark_recovery.values())
        if self.worst_recovery < 1 - max_loss:
            return "loses"
        return "in doubt" if any(score.low < 1 - max_loss for score in everything) else "keeps"


class Variant(Value):
    """One servable checkpoint and how it was made."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    model: str
    """A local folder or a hub id."""
    revision: str | None = None
    method: str = "none"
    parameters: dict[str, Any] = Field(default_factory=dict)
    parent: str | None = None
    made_of: str = ""
    """Digest of how the parent was made, back to the first: of another parent it is another variant."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Fields of EngineArgs that belong to it: a float32 model is one only if served in float32."""
    size_bytes: int = Field(0, ge=0)
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    """What a reader has to know before choosing it."""
    made_with: dict[str, str] = Field(default_factory=dict)
    """Versions and hardware."""

    @field_validator("engine")
    @classmethod
    def _known(cls, engine: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(engine) - set(EngineArgs.model_fields))
        if unknown:
            raise ValueError(f"engine(={unknown}) must name fields of EngineArgs")
        return engine

    @property
    def size_mib(self) -> float:
        return self.size_bytes / 2**20


class EngineArgs(Value):
    """The vLLM arguments that are measured, simulated and shipped: the same for all three."""

    max_model_len: int = Field(1024, gt=0)
    max_num_seqs: int = Field(32, gt=0)
    max_num_batched_tokens: int = Field(2048, gt=0)
    enable_prefix_caching: bool = False
    enable_chunked_prefill: bool | None = None
    long_prefill_token_threshold: int | None = Field(None, ge=0)
    """The most prompt tokens of one request in one step, where it is not alone; 0 is no limit."""
    scheduling_policy: Literal["fcfs", "priority"] | None = None
    max_num_queued_reqs: int | None = Field(None, ge=0)
    """Requests waiting or running beyond which the server answers 503."""
    max_num_queued_tokens: int | None = Field(None, ge=0)
    """Prompt tokens before their first answer beyond which the server answers 503."""
    watermark: float | None = Field(None, ge=0, lt=1)
    """Share of the KV cache that an admission leaves free while something runs."""
    scheduler_reserve_full_isl: bool | None = None
    """Admit only where the whole prompt finds blocks; None is vLLM's own, True."""
    kv_cache_dtype: str | None = None
    """For example fp8; None keeps the model's own."""
    tensor_parallel_size: int = Field(1, ge=1)
    gpu_memory_utilization: float = Field(0.84, gt=0, le=1)
    kv_cache_memory_bytes: int | None = Field(None, gt=0)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    enforce_eager: bool = False
    async_scheduling: bool | None = None
    load_format: str | None = None
    """`dummy` is random weights: true for speed and memory, meaningless for quality."""
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> EngineArgs:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens(={self.max_num_batched_tokens}) must be"
                f" >= max_num_seqs(={self.max_num_seqs})"
            )
        whole = self.max_num_batched_tokens >= self.max_model_len
        if self.enable_chunked_prefill is False and not whole:
            raise ValueError(
                f"max_num_batched_tokens(={self.max_num_batched_tokens}) must be"
                f" >= max_model_len(={self.max_model_len}) where prompts are not computed in chunks"
            )
        return self

    def serving(self, variant: Variant) -> EngineArgs:
        """The same with what belongs to the variant."""
        return EngineArgs.model_validate(self.model_dump() | variant.engine)

    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's EngineArgs; what is None is left to vLLM."""
        return self.model_dump(exclude_none=True)

    def cli(self) -> list[str]:
        """The same as arguments of `vllm serve`."""
        arguments: list[str] = []
        for key, value in self.kwargs().items():
            flag = key.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                arguments += [f"--{flag}", str(value)]
        return arguments


class Slo(Value):
    """What users were promised. A limit left out does not bind."""

    ttft_p99_s: float | None = Field(0.5, gt=0)
    tpot_p99_s: float | None = Field(None, gt=0)
    e2e_p99_s: float | None = Field(None, gt=0)
    max_error_share: float = Field(0.01, gt=0, le=1)
    """Largest share of requests that fail, are rejected, or are never answered; tuning keeps it."""
    max_timeout_share: float = Field(0.01, gt=0, le=1)
    """Largest share of requests that their clients give up; tuning keeps it."""
    max_quality_loss: float = Field(0.02, ge=0, le=1)
    """Largest loss of task accuracy against the parent, as a share of it."""

    @model_validator(mode="after")
    def _binds(self) -> Slo:
        if not self.limits():
            raise ValueError("at least one of ttft_p99_s, tpot_p99_s, e2e_p99_s must be set")
        return self

    def limits(self) -> dict[str, float]:
        """{'ttft_p99_s': 0.5, ...}: the latency limits that bind."""
        named = {
            "ttft_p99_s": self.ttft_p99_s,
            "tpot_p99_s": self.tpot_p99_s,
            "e2e_p99_s": self.e2e_p99_s,
        }
        return {name: limit for name, limit in named.items() if limit is not None}


class Plan(Value):
    """Variant, engine, fleet and promise: what is simulated, shipped and verified."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)
    variant: Variant
    engine: EngineArgs
    slo: Slo
    replicas: int | None = Field(None, ge=1)
    """A static fleet of this size; None where `hpa` decides."""
    hpa: HpaSpec | None = None
    warm_spares: int = Field(0, ge=0)
    """Replicas kept ready beyond what the autoscaler asks for."""
    gateway: GatewaySpec = GatewaySpec()
    gpus_per_replica: int = Field(1, ge=1)
    gpu_usd_per_hour: float = Field(2.5, gt=0)

    @field_validator("engine")
    @classmethod
    def _serves_the_variant(cls, engine: EngineArgs, known: ValidationInfo) -> EngineArgs:
        return engine.serving(known.data["variant"]) if "variant" in known.data else engine

    @model_validator(mode="after")
    def _one_fleet(self) -> Plan:
        if (self.replicas is None) == (self.hpa is None):
            raise ValueError("exactly one of replicas and hpa must be set")
        return self
