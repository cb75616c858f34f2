"""Plan -> Kubernetes objects, as plain dictionaries."""

from __future__ import annotations

from typing import Any

from serving.plan import Plan

PORT = 8000
MODEL_PATH = "/model"
# Named in full: an image's own entry point has changed from one release of vLLM to the next.
SERVER = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
# A stream may take this long to finish after new traffic has stopped (vLLM aborts streams by
# default), within a grace period that outlasts the sleep before and the drain together.
PRE_STOP_S, SHUTDOWN_S = 15, 45
GRACE_S = PRE_STOP_S + SHUTDOWN_S + 15
_STARTUP_LIMIT_S = 1800
_STARTUP_PERIOD_S = 10

Object = dict[str, Any]


def app_name(plan: Plan) -> str:
    """Name of everything that belongs to the plan."""
    return f"vllm-{plan.name}"


def labels(plan: Plan) -> dict[str, str]:
    """Labels that select the plan's pods."""
    return {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": app_name(plan)}


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
        *("--host", "0.0.0.0", "--port", str(PORT), "--shutdown-timeout", str(SHUTDOWN_S)),
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


def deployment(plan: Plan, image: str) -> Object:
    """One replica per pod; the replica count is left to the autoscaler where there is one."""
    spec: Object = {
        "selector": {"matchLabels": labels(plan)},
        # GPUs are not to spare: the old pod goes before the new one comes.
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
        },
        "template": {"metadata": {"labels": labels(plan)}, "spec": _pod(plan, image)},
    }
    if plan.replicas is not None:
        spec["replicas"] = plan.replicas
    return _object("apps/v1", "Deployment", plan, spec)


def _pod(plan: Plan, image: str) -> Object:
    volumes: list[Object] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        {"name": "cache", "emptyDir": {"sizeLimit": "20Gi"}},
    ]
    if is_local(plan):
        claim = {"claimName": app_name(plan), "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": claim})
    return {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": GRACE_S,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels(plan)},
            }
        ],
        "containers": [_container(plan, image)],
        "volumes": volumes,
    }


def _container(plan: Plan, image: str) -> Object:
    gpu = {"nvidia.com/gpu": str(plan.gpus_per_replica)}
    mounts: list[Object] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "cache", "mountPath": "/cache"},
    ]
    if is_local(plan):
        mounts.append({"name": "model", "mountPath": MODEL_PATH, "readOnly": True})
    return {
        "name": "vllm",
        "image": image,
        "command": SERVER,
        "args": container_arguments(plan),
        "env": [{"name": key, "value": value} for key, value in environment(plan).items()],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {
            "requests": {"cpu": "4", "memory": "16Gi", **gpu},
            "limits": {"memory": "32Gi", **gpu},
        },
        "startupProbe": _warm_up(plan),
        "readinessProbe": {**_http("/health"), "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {**_http("/health"), "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _warm_up(plan: Plan) -> Object:
    """No traffic before the replica has finished an inference; a server that listens may be cold."""
    request = {"model": plan.variant.name, "prompt": "Hello", "max_tokens": 1}
    script = (
        "import json, urllib.request as http; http.urlopen(http.Request("
        f"'http://127.0.0.1:{PORT}/v1/completions', json.dumps({request}).encode(),"
        " {'Content-Type': 'application/json'}), timeout=60).read()"
    )
    return {
        "exec": {"command": ["python3", "-c", script]},
        "periodSeconds": _STARTUP_PERIOD_S,
        "timeoutSeconds": 60,
        "failureThreshold": _STARTUP_LIMIT_S // _STARTUP_PERIOD_S,
    }


def _http(path: str) -> Object:
    return {"httpGet": {"path": path, "port": "http"}}


def service(plan: Plan) -> Object:
    """Where the gateway finds the replicas."""
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    return _object("v1", "Service", plan, {"selector": labels(plan), "ports": ports})


def disruption_budget(plan: Plan) -> Object:
    """At most one replica is taken away at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": labels(plan)}}
    return _object("policy/v1", "PodDisruptionBudget", plan, spec)


def network_policy(plan: Plan) -> Object:
    """Nothing reaches the pods but the gateway and Prometheus, on one port; they reach DNS and hubs."""
    allowed = [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
    ]
    outward: list[Object] = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    if not is_local(plan):
        outward.append({"port": 443, "protocol": "TCP"})
    spec = {
        "podSelector": {"matchLabels": labels(plan)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": allowed, "ports": [{"port": PORT, "protocol": "TCP"}]}],
        "egress": [{"ports": outward}],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", plan, spec)


def autoscaler(plan: Plan) -> Object | None:
    """The HorizontalPodAutoscaler exactly as it was simulated; None for a static fleet."""
    if plan.hpa is None:
        return None
    manifest = plan.hpa.manifest(app_name(plan), app_name(plan))
    manifest["metadata"]["labels"] = labels(plan)
    return manifest


def _object(api: str, kind: str, plan: Plan, spec: Object) -> Object:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": app_name(plan), "labels": labels(plan)},
        "spec": spec,
    }
