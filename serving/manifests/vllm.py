"""How a replica of vLLM is started."""

from __future__ import annotations

from serving.manifests.names import VLLM_PORT
from serving.plan import Plan

MODEL_PATH = "/model"
# Named in full: an image's own entry point has changed from one release of vLLM to the next.
SERVER = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
# A stream may take this long to finish after new traffic has stopped (vLLM aborts streams by
# default), within a grace period that outlasts the sleep before and the drain together.
PRE_STOP_S, SHUTDOWN_S = 15, 45
GRACE_S = PRE_STOP_S + SHUTDOWN_S + 15


def is_local(plan: Plan) -> bool:
    """Whether the weights lie in the bundle; a hub's are fetched at their revision."""
    return plan.variant.revision is None


def serve_arguments(plan: Plan, model: str) -> list[str]:
    """Arguments of vLLM's OpenAI-compatible server."""
    arguments = ["--model", model, "--served-model-name", plan.variant.name]
    if plan.variant.revision:
        arguments += ["--revision", plan.variant.revision]
    return arguments + plan.engine.cli()


def container_arguments(plan: Plan) -> list[str]:
    """Arguments of the server in a container."""
    return [
        *serve_arguments(plan, MODEL_PATH if is_local(plan) else plan.variant.model),
        *("--host", "0.0.0.0", "--port", str(VLLM_PORT), "--shutdown-timeout", str(SHUTDOWN_S)),
    ]


def environment(plan: Plan) -> dict[str, str]:
    """Environment of the server in a container, where no home and no user name can be relied on."""
    known = {
        "HOME": "/cache",
        "USER": "vllm",
        "HF_HOME": "/cache/huggingface",
        "VLLM_CACHE_ROOT": "/cache/vllm",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return known | ({"HF_HUB_OFFLINE": "1"} if is_local(plan) else {})


def without_containers(plan: Plan) -> dict[str, object]:
    """How to start one replica from inside the bundle."""
    model = "model" if is_local(plan) else plan.variant.model
    return {"module": SERVER[-1], "arguments": serve_arguments(plan, model)}
