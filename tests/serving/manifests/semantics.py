"""What a schema does not see: objects that do not find each other, and values that no cluster takes.

Schemas know fields and types. They take an enumeration's wrong word, a minimum above its maximum, a
selector that selects nothing, and a port that nobody listens at.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from serving.hpa.quantity import exact
from serving.manifests.names import Object

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_ENUMS = {
    "protocol": {"TCP", "UDP", "SCTP", "HTTP", "HTTPS", "TLS"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "medium": {"", "Memory", "HugePages"},
    "selectPolicy": {"Max", "Min", "Disabled"},
}
_STRATEGIES = {"Deployment": {"RollingUpdate", "Recreate"}}
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
_MAX_LABEL = 63


def problems(objects: Sequence[Object], *, outside: Collection[tuple[str, str]] = ()) -> list[str]:
    """Everything that is wrong with objects that are applied together.

    Args:    outside: (kind, name) of what they refer to and somebody else makes.
    """
    there = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    known = {*there, *outside}
    found = [f"{kind} {name} is there twice" for kind, name in _twice(objects)]
    for one in objects:
        said = f"{one['kind']} {one['metadata']['name']}"
        for problem in (*_values(one), *_references(one, known), *_selections(one, objects)):
            found.append(f"{said}: {problem}")
    return found


def missing_files(files: Mapping[str, str]) -> list[str]:
    """What kustomizations name and is not there, over {path: text} of a bundle."""
    found = []
    for path, text in files.items():
        if posixpath.basename(path) == "kustomization.yaml":
            folder = posixpath.dirname(path)
            for name in _named(yaml.safe_load(text)):
                target = posixpath.normpath(posixpath.join(folder, name))
                if target not in files and f"{target}/kustomization.yaml" not in files:
                    found.append(f"{path} names {name}, which is not there")
    return found


def _named(kustomization: Object) -> Iterator[str]:
    yield from kustomization.get("resources", ())
    yield from kustomization.get("components", ())
    yield from (patch["path"] for patch in kustomization.get("patches", ()) if "path" in patch)
    for generator in kustomization.get("configMapGenerator", ()):
        yield from generator["files"]


def _twice(objects: Iterable[Object]) -> list[tuple[str, str]]:
    seen: set[tuple[str, str]] = set()
    again = []
    for one in objects:
        key = (one["kind"], one["metadata"]["name"])
        if key in seen:
            again.append(key)
        seen.add(key)
    return again


# -- values ------------------------------------------------------------------------------------


def _values(one: Object) -> Iterator[str]:
    name = one["metadata"]["name"]
    if not _NAME.fullmatch(name) or (one["kind"] == "Service" and len(name) > _MAX_LABEL):
        yield f"metadata.name(={name!r}) names no object"
    for path, key, value in _walk(one, ""):
        if key in _ENUMS and isinstance(value, str) and value not in _ENUMS[key]:
            yield f"{path}(={value!r}) must be one of {sorted(_ENUMS[key])}"
        if key in ("requests", "limits") and isinstance(value, dict):
            yield from _quantities(path, value)
        if key in ("sizeLimit", "averageValue"):
            yield from _quantities(path, {key: value})
        if key in ("matchLabels", "labels") and isinstance(value, dict):
            long = [v for v in value.values() if len(str(v)) > _MAX_LABEL]
            yield from (f"{path}(={v!r}) is longer than {_MAX_LABEL}" for v in long)
    spec = one.get("spec") or {}
    for low, high in (("minReplicas", "maxReplicas"), ("minReplicaCount", "maxReplicaCount")):
        if high in spec and spec.get(low, 1) > spec[high]:
            yield f"{low}(={spec.get(low, 1)}) must be <= {high}(={spec[high]})"
    strategy = (spec.get("strategy") or {}).get("type")
    if strategy and strategy not in _STRATEGIES.get(one["kind"], {strategy}):
        yield f"strategy.type(={strategy!r}) must be one of {sorted(_STRATEGIES[one['kind']])}"
    if one["kind"] == "NetworkPolicy":
        wrong = set(spec.get("policyTypes", ())) - {"Ingress", "Egress"}
        yield from (f"policyTypes(={word!r}) must be Ingress or Egress" for word in sorted(wrong))


def _quantities(path: str, given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        try:
            if exact(value) < 0:
                yield f"{path}.{name}(={value!r}) must be >= 0"
        except ValueError:
            yield f"{path}.{name}(={value!r}) is no quantity"


def _walk(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            yield here, str(key), inner
            yield from _walk(inner, here)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{i}]")


# -- references --------------------------------------------------------------------------------


def _references(one: Object, known: Collection[tuple[str, str]]) -> Iterator[str]:
    spec = one.get("spec") or {}
    target = spec.get("scaleTargetRef") or spec.get("workloadRef")
    if target and (target["kind"], target["name"]) not in known:
        yield f"scales {target['kind']} {target['name']}, which is not there"
    if one["kind"] in _WORKLOADS:
        yield from _pod_references(spec["template"]["spec"], known)
    for rule in spec.get("rules", ()) if one["kind"] == "HTTPRoute" else ():
        for backend in rule["backendRefs"]:
            if ("Service", backend["name"]) not in known:
                yield f"sends to Service {backend['name']}, which is not there"
    canary = (spec.get("strategy") or {}).get("canary") or {}
    for field in ("stableService", "canaryService"):
        if field in canary and ("Service", canary[field]) not in known:
            yield f"{field} {canary[field]} is not there"


def _pod_references(pod: Object, known: Collection[tuple[str, str]]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for volume in volumes.values():
        for kind, name in _sources(volume):
            if (kind, name) not in known:
                yield f"volume {volume['name']} is of {kind} {name}, which is not there"
    for container in pod["containers"]:
        said = f"container {container['name']}"
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"{said} mounts {mount['name']}, which is no volume"
        for variable in container.get("env", ()):
            secret = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if secret and ("Secret", secret["name"]) not in known:
                yield f"{said} reads Secret {secret['name']}, which is not there"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(probe) or {}
            port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
            if isinstance(port, str) and port not in ports:
                yield f"{said}: {probe} asks port {port!r}, which it does not have"
        requests, limits = (container["resources"].get(part, {}) for part in ("requests", "limits"))
        for name in sorted(requests.keys() & limits.keys()):
            with suppress(ValueError):  # what is no quantity is said already
                if exact(requests[name]) > exact(limits[name]):
                    yield f"{said} requests more {name} than its limit"
        sleep = ((container.get("lifecycle") or {}).get("preStop") or {}).get("sleep") or {}
        if sleep.get("seconds", 0) >= pod.get("terminationGracePeriodSeconds", 30):
            yield f"{said} sleeps longer before its stop than the pod may take"


def _sources(volume: Object) -> Iterator[tuple[str, str]]:
    if "configMap" in volume:
        yield "ConfigMap", volume["configMap"]["name"]
    if "secret" in volume:
        yield "Secret", volume["secret"]["secretName"]
    if "persistentVolumeClaim" in volume:
        yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


# -- selectors ---------------------------------------------------------------------------------


def _selections(one: Object, objects: Sequence[Object]) -> Iterator[str]:
    """A selector that selects nothing, and ports that the selected do not have."""
    kind, spec = one["kind"], one.get("spec") or {}
    if kind in _WORKLOADS:
        labels = spec["template"]["metadata"]["labels"]
        if not spec["selector"]["matchLabels"].items() <= labels.items():
            yield "its selector does not select its own pods"
    elif kind == "Service":
        pods = list(_pods(objects, spec["selector"]))
        if not pods:
            yield "its selector selects no pod"
        for port in spec["ports"]:
            if any(port["targetPort"] not in _port_names(pod) for pod in pods):
                yield f"targetPort(={port['targetPort']!r}) is no port of the pods it selects"
    elif kind in ("PodDisruptionBudget", "NetworkPolicy"):
        chosen = spec.get("selector") or spec["podSelector"]
        pods = list(_pods(objects, chosen.get("matchLabels", {})))
        if not pods:
            yield "its selector selects no pod"
        yield from _open_ports(spec, pods)
    elif kind == "ServiceMonitor":
        wanted = spec["selector"]["matchLabels"].items()
        services = [
            other
            for other in objects
            if other["kind"] == "Service" and wanted <= other["metadata"]["labels"].items()
        ]
        if not services:
            yield "its selector selects no Service"
        names = {port["name"] for service in services for port in service["spec"]["ports"]}
        for endpoint in spec["endpoints"]:
            if services and endpoint["port"] not in names:
                yield f"port(={endpoint['port']!r}) is no port of the Services it selects"


def _open_ports(spec: Object, pods: Sequence[Object]) -> Iterator[str]:
    """What a NetworkPolicy opens and no selected pod listens at."""
    listened = {port for pod in pods for port in _port_names(pod).values()}
    for rule in spec.get("ingress", ()):
        for port in rule.get("ports", ()):
            if pods and port["port"] not in listened:
                yield f"opens port {port['port']}, at which no pod that it selects listens"


def _pods(objects: Iterable[Object], labels: Mapping[str, str]) -> Iterator[Object]:
    for one in objects:
        if one["kind"] in _WORKLOADS:
            template: Object = one["spec"]["template"]
            if labels.items() <= template["metadata"]["labels"].items():
                yield template


def _port_names(pod: Object) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", ())
    }
