"""Quantization: fewer bits for weights, activations or KV cache, in formats that vLLM has kernels for.

Integer and FP8 weights are made by llmcompressor and written as compressed-tensors; bitsandbytes by
transformers. The output head and the embeddings keep their type.

Source:  Frantar et al., GPTQ, arXiv 2210.17323; Xiao et al., SmoothQuant, arXiv 2211.10438; Lin et al.,
         AWQ, arXiv 2306.00978; Micikevicius et al., FP8, arXiv 2209.05433; Dettmers et al., LLM.int8(),
         arXiv 2208.07339 and QLoRA (NF4), arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from serving.errors import InputError
from workbench.compress.checkpoint import check_not_quantized, load, save, written
from workbench.compress.machine import Needs
from workbench.compress.oneshot import oneshot
from workbench.compress.texts import fitting_rows, seen_rows
from workbench.progress import OnProgress

SEQ_LEN = 256
_GROUP = 128
_KV_FP8 = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "dynamic": False,
    "symmetric": True,
}


class Scheme(NamedTuple):
    """One way to quantize.

    Attributes:
        says: what it does, in a few words.
        needs: to be served.
        modifiers: llmcompressor's recipe; None where another library does it.
        cast: the type that all weights become.
        bits: of bitsandbytes.
        calibrated: whether it looks at text.
        grouped: whether every width must be a multiple of 128.
        engine: fields of EngineArgs that belong to the result.
    """

    says: str
    needs: Needs
    modifiers: Callable[[], list[Any]] | None = None
    cast: str | None = None
    bits: int | None = None
    calibrated: bool = False
    grouped: bool = False
    engine: dict[str, Any] = {}  # noqa: RUF012  (never written to)


def _gptq(scheme: str) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return [GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])]


def _smoothquant() -> list[Any]:
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return [SmoothQuantModifier(smoothing_strength=0.8), *_rounded("W8A8")]


def _awq() -> list[Any]:
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), *_rounded("W4A16_ASYM")]


def _rounded(scheme: str) -> list[Any]:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return [QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])]


def _kv_cache() -> list[Any]:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return [QuantizationModifier(kv_cache_scheme=_KV_FP8)]


_ANY, _FP8 = Needs(gpu=(7, 5)), Needs(gpu=(8, 9), cpu=False)
_INT4 = Needs(gpu=(8, 0), avx512=True)
_BITSANDBYTES = Needs(gpu=(7, 5), cpu=False, package="bitsandbytes")

SCHEMES = {
    "fp32": Scheme("32-bit weights", _ANY, cast="float32", engine={"dtype": "float32"}),
    "fp16": Scheme("16-bit weights, IEEE half", _ANY, cast="float16", engine={"dtype": "float16"}),
    "bf16": Scheme(
        "16-bit weights, bfloat16", Needs(gpu=(8, 0)), cast="bfloat16", engine={"dtype": "bfloat16"}
    ),
    "int8-gptq": Scheme("W8A8, GPTQ", _ANY, lambda: _gptq("W8A8"), calibrated=True),
    "int8-smoothquant": Scheme("W8A8, SmoothQuant", _ANY, _smoothquant, calibrated=True),
    "int4-gptq": Scheme(
        "W4A16 in groups of 128, GPTQ",
        _INT4,
        lambda: _gptq("W4A16"),
        calibrated=True,
        grouped=True,
    ),
    "int4-awq": Scheme(
        "W4A16 in groups of 128 with zero points, AWQ",
        _INT4,
        _awq,
        calibrated=True,
        grouped=True,
    ),
    "fp8": Scheme("FP8 W8A8, static scales", _FP8, lambda: _rounded("FP8"), calibrated=True),
    "fp8-dynamic": Scheme(
        "FP8 W8A8, scales per channel and token", _FP8, lambda: _rounded("FP8_DYNAMIC")
    ),
    "fp8-kv": Scheme(
        "KV cache in FP8, calibrated scales; weights as they are",
        Needs(gpu=(8, 0), avx512=True),
        _kv_cache,
        calibrated=True,
        engine={"kv_cache_dtype": "fp8"},
    ),
    "bnb-int8": Scheme("bitsandbytes LLM.int8()", _BITSANDBYTES, bits=8),
    "bnb-nf4": Scheme("bitsandbytes NF4, double quantization", _BITSANDBYTES, bits=4),
}


def quantize(
    model: str | Path,
    out: Path,
    *,
    scheme: str = "int8-gptq",
    calibration_sequences: int = 64,
    seq_len: int = SEQ_LEN,
    text: Path | None = None,
    task_share: float | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write a quantized checkpoint.

    Args:    scheme: one of SCHEMES.
             calibration_sequences: rows of `seq_len` tokens that calibrated schemes see.
             text: JSONL to calibrate with; None takes shipped text and tasks.
             task_share: share of its rows that hold shipped tasks; None is none beside a file.
    Raises:  ModelError: a model that cannot be loaded, or is quantized already.
             InputError: an unknown scheme, widths its groups do not fit, or no GPU where it takes one.
    """
    chosen = scheme_of(scheme)
    if chosen.bits is not None:
        return _bitsandbytes(model, out, chosen.bits)
    parent, tokenizer = load(model, dtype=chosen.cast or "auto")
    if chosen.cast is not None:
        return save(parent, tokenizer, out)
    if chosen.grouped:
        _check_groups(parent)
    rows = fitting_rows(
        tokenizer,
        calibration_sequences,
        seed=seed,
        seq_len=seq_len,
        text=text,
        task_share=task_share,
    )
    size = sum(p.numel() * p.element_size() for p in parent.parameters())
    with written(out, needed_bytes=size) as folder:
        assert chosen.modifiers is not None
        shown = rows if chosen.calibrated else rows[:1]
        oneshot(parent, tokenizer, chosen.modifiers(), shown, folder, chosen.says, on_progress)
        tokenizer.save_pretrained(folder)
        if chosen.calibrated:
            seen_rows(tokenizer, rows).write(folder)
    return out


def scheme_of(name: str) -> Scheme:
    """The scheme of a name.

    Raises:  InputError: there is none.
    """
    if name not in SCHEMES:
        raise InputError(
            f"scheme(={name!r}) is unknown", remedy=f"Take one of {', '.join(SCHEMES)}."
        )
    return SCHEMES[name]


def _check_groups(model: Any) -> None:
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.in_features % _GROUP:
            raise InputError(
                f"{name} has {module.in_features} inputs, no multiple of {_GROUP}, as 4-bit groups need",
                remedy="Take an 8-bit scheme, or prune to multiples of 128.",
            )


def _bitsandbytes(model: str | Path, out: Path, bits: int) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise InputError(
            "bitsandbytes quantizes on an NVIDIA GPU, and there is none",
            remedy="Make it on the machine that serves it, or take int8-gptq or int4-gptq.",
        )
    check_not_quantized(model)
    config = BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    parent = AutoModelForCausalLM.from_pretrained(
        str(model), quantization_config=config, device_map="cuda", dtype=torch.bfloat16
    )
    return save(parent, AutoTokenizer.from_pretrained(str(model)), out)
