"""What to tell a user whose vLLM did not start: the most telling line and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

from serving.errors import EngineError
from serving.plan import Variant

# The engine's own summary says only that it failed; the cause stands before it.
_HOLLOW = re.compile(
    r"Engine core initialization failed|See (the )?(root cause|stack trace)|EngineDeadError"
    r"|WorkerProc initialization failed|validation errors? for"
    r"|DeprecationWarning|FutureWarning|UserWarning"
)
_TELLING = re.compile(
    r"(?:^|[\s.(])(\w*(?:Error|Exception|Interrupt|Killed)\b: .+|\w+Error$)|error: |Value error, "
)
_REMEDIES = (
    (
        r"memory|KV cache|No available",
        "Free memory, or lower kv_cache_memory_bytes, gpu_memory_utilization or max_model_len.",
    ),
    (r"[Aa]ddress already in use", "Choose another port, or leave it out."),
    (
        r"max_model_len|max_position_embeddings|derived max",
        "Lower max_model_len to what the model was made for.",
    ),
    (
        r"unrecognized arguments",
        "This vLLM does not know that argument: install a version from 0.26 on.",
    ),
    (r"No module named", "Install the extra for this machine: pip install 'llm-workbench[cpu]'."),
    (
        r"config\.json|not a local folder|Repo id|repository|tokenizer|safetensors|architectures"
        r"|Invalid repository|offline mode|OSError",
        "Check the model's path or hub id: it must be a checkpoint that vLLM can load.",
    ),
)
_READ_BYTES = 1 << 20


def telling_line(text: str) -> str:
    """The line that says most about a failure; empty if none does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if _TELLING.search(line) and not _HOLLOW.search(line)]
    line = found[-1] if found else (lines[-1] if lines else "")
    # Without vLLM's "(EngineCore pid=1) ERROR 01-01 00:00:00 [core.py:1]" in front, and without what
    # pydantic adds behind.
    line = re.sub(r"^(\([^)]*\)\s*)*((ERROR|WARNING|INFO)\s[\d: -]+)?(\[[^\]]*\]\s*)?", "", line)
    return re.sub(r"\s*\[type=.*$", "", line)


def explain(text: str, variant: Variant, log: Path | None = None, ended: str = "") -> EngineError:
    """The error to raise for what vLLM printed when it failed.

    Args:    ended: how the process ended, where it was one.
    """
    line = telling_line(text)[:300] or "it said nothing"
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, line)), "")
    where = f"Its log: {log}" if log is not None else ""
    return EngineError(
        f"vLLM did not start with {variant.model!r}{ended}: {line}",
        remedy=f"{remedy} {where}".strip(),
    )


def tail(log: Path) -> str:
    """The end of a log."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _READ_BYTES))
        return file.read().decode(errors="replace")
