"""The whole HorizontalPodAutoscaler object: YAML in, and the same YAML out.

Source:  Kubernetes v1.35: the forms of a refused create (apimachinery, pkg/api/errors) and of strict
         decoding, in which unknown and repeated fields are errors (kubectl's default).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml
from pydantic import Field, ValidationError

from serving.errors import InputError
from serving.hpa.spec import UNCHECKED, HpaSpec, ObjectReference
from serving.hpa.validation import aggregate, invalid, refusals, required
from serving.values import Value

API_VERSION, KIND = "autoscaling/v2", "HorizontalPodAutoscaler"
_REMEDY = "Mend the manifest: the API server would not take it either."
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_GO_TYPES = {bool: "bool", str: "string", list: "array", dict: "object", int: "number"}


class HorizontalPodAutoscaler(Value):
    """A HorizontalPodAutoscaler as it is applied: what it scales, by which spec, and its metadata."""

    metadata: dict[str, Any] = Field(default_factory=dict)
    target: ObjectReference
    spec: HpaSpec
    status: dict[str, Any] | None = None
    """As the cluster reported it, where the manifest came from one."""

    @classmethod
    def from_yaml(cls, text: str, *, scale_to_zero: bool = True) -> HorizontalPodAutoscaler:
        """Read a manifest.

        Args:    scale_to_zero: gate HPAScaleToZero, which is open by default from v1.37 on.
        Raises:  InputError: a manifest that the API server would refuse, for its reason.
        """
        given = _loaded(text)
        if given.get("apiVersion") != API_VERSION or given.get("kind") != KIND:
            found = f"{given.get('apiVersion')} {given.get('kind')}"
            raise InputError(f"{found} is not {API_VERSION} {KIND}", remedy=_REMEDY)
        _refuse_fields(given, ("apiVersion", "kind", "metadata", "spec", "status"), "")
        spec = dict(given.get("spec") or {})
        target = spec.pop("scaleTargetRef", None) or {}
        try:
            found_target = ObjectReference.model_validate(target)
        except ValidationError as error:
            raise _undecodable(
                error, "spec.scaleTargetRef", "CrossVersionObjectReference"
            ) from error
        try:
            found_spec = HpaSpec.model_validate(spec, context=UNCHECKED)
        except ValidationError as error:
            raise _undecodable(error, "spec", "HorizontalPodAutoscalerSpec") from error
        metadata = given.get("metadata") or {}
        problems = [
            *_name_problems(metadata),
            *refusals(found_spec, found_target, scale_to_zero=scale_to_zero),
        ]
        if problems:
            name = metadata.get("name", "")
            raise InputError(
                f'{KIND}.autoscaling "{name}" is invalid: {aggregate(problems)}', remedy=_REMEDY
            )
        return cls(
            metadata=metadata, target=found_target, spec=found_spec, status=given.get("status")
        )

    def manifest(self) -> dict[str, Any]:
        """The object as it was given."""
        target = self.target.model_dump(mode="json", by_alias=True)
        found: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": self.metadata,
            "spec": {"scaleTargetRef": target, **self.spec.model_dump(mode="json", by_alias=True)},
        }
        return found if self.status is None else found | {"status": self.status}

    def to_yaml(self) -> str:
        """The manifest as text."""
        return yaml.safe_dump(self.manifest(), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: times stay text, and a repeated field is an error."""

    def construct_document(self, node: yaml.Node) -> Any:
        for path in _repeated(node, ""):
            raise InputError(_strictly(f'duplicate field "{path}"'), remedy=_REMEDY)
        return super().construct_document(node)


_Loader.yaml_implicit_resolvers = {
    first: [known for known in resolvers if known[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _repeated(node: yaml.Node, path: str) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            here = f"{path}.{key.value}" if path else str(key.value)
            if key.value in seen:
                yield here
            seen.add(key.value)
            yield from _repeated(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _repeated(value, f"{path}[{i}]")


def _loaded(text: str) -> dict[str, Any]:
    try:
        given = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(
            f"the manifest is not one YAML document ({error})", remedy=_REMEDY
        ) from error
    if not isinstance(given, dict):
        raise InputError(
            f"the manifest (={given!r}) is not a mapping",
            remedy=f"Give one object of kind {KIND}.",
        )
    for key in ("metadata", "spec", "status"):
        if not isinstance(given.get(key) or {}, dict):
            raise InputError(_mismatch(given[key], KIND, key, "struct"), remedy=_REMEDY)
    return given


def _refuse_fields(given: dict[str, Any], known: tuple[str, ...], path: str) -> None:
    for key in given:
        if key not in known:
            raise InputError(_strictly(f'unknown field "{path}{key}"'), remedy=_REMEDY)


def _strictly(detail: str) -> str:
    return f'{KIND} in version "v2" cannot be handled as a {KIND}: strict decoding error: {detail}'


def _mismatch(value: Any, struct: str, path: str, kind: str) -> str:
    found = _GO_TYPES.get(type(value), f"number {value}")
    if found == "number":
        found = f"number {value}"
    return (
        f'{KIND} in version "v2" cannot be handled as a {KIND}: json: cannot unmarshal {found}'
        f" into Go struct field {struct}.{path} of type {kind}"
    )


def _undecodable(error: ValidationError, path: str, struct: str) -> InputError:
    """The first complaint in the words of Kubernetes' decoder."""
    first = error.errors(include_url=False)[0]
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not re.match(r"function|constrained|str\b|int\b|float\b", part):
            path += f".{part}"
    if first["type"] == "extra_forbidden":
        return InputError(_strictly(f'unknown field "{path}"'), remedy=_REMEDY)
    if first["type"] == "value_error":
        detail = first["msg"].removeprefix("Value error, ")
        return InputError(f"{path}: Invalid value: {first['input']!r}: {detail}", remedy=_REMEDY)
    kind = "string" if first["type"].startswith("string") else "object"
    kind = "int32" if re.match("int|greater|less", first["type"]) else kind
    return InputError(_mismatch(first["input"], struct, path, kind), remedy=_REMEDY)


def _name_problems(metadata: dict[str, Any]) -> list[str]:
    """An object's name is a DNS subdomain; `generateName` may stand in for it."""
    name = metadata.get("name")
    if not name:
        generated = metadata.get("generateName")
        missing = required("metadata.name", "name or generateName is required")
        return [] if generated else [missing]
    if _SUBDOMAIN.fullmatch(str(name)) and len(str(name)) <= 253:
        return []
    detail = (
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or"
        " '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used"
        " for validation is"
        r" '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    )
    return [invalid("metadata.name", name, detail)]
