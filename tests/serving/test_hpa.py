"""The autoscaler's manifest: the same YAML out, and its quantities."""

from __future__ import annotations

from decimal import Decimal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.hpa import Behavior, HorizontalPodAutoscaler, HpaSpec, ScalingRules, approximate, milli

from .hpas import MANIFEST, changed
from .plans import specs

# -- the same out ------------------------------------------------------------------------------


def test_what_was_read_is_what_is_written() -> None:
    found = HorizontalPodAutoscaler.from_yaml(MANIFEST)
    wanted = yaml.safe_load(MANIFEST)
    wanted["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert yaml.safe_load(found.to_yaml()) == wanted
    assert HorizontalPodAutoscaler.from_yaml(found.to_yaml()) == found
    assert (found.spec.min_replicas, found.target.name) == (1, "chat")
    assert found.spec.behavior is not None
    assert found.spec.behavior.scale_down == ScalingRules()


@given(specs)
@settings(max_examples=60, deadline=None)
def test_a_spec_survives_every_way_through(spec: HpaSpec) -> None:
    text = yaml.safe_dump(spec.manifest("a", "b"))
    assert HpaSpec.from_yaml(text) == spec
    assert HorizontalPodAutoscaler.from_yaml(text).manifest() == spec.manifest("a", "b")
    for by_alias in (True, False):
        again = HpaSpec.model_validate_json(spec.model_dump_json(by_alias=by_alias))
        assert again == spec
        assert again.manifest("a", "b") == spec.manifest("a", "b")


def test_null_is_the_same_as_left_out() -> None:
    found = HpaSpec.from_yaml(changed("maxReplicas: 12", "maxReplicas: 12\n  minReplicas: null"))
    assert found == HpaSpec.from_yaml(MANIFEST)
    # But an empty behavior is one: the API server fills it in.
    text = MANIFEST[: MANIFEST.index("  behavior:")]
    assert HpaSpec.from_yaml(text + "  behavior: {}\n").behavior == Behavior()
    assert HpaSpec.from_yaml(text + "  behavior:\n").behavior is None


# -- quantities --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "thousandths"),
    [
        *[("70", 70_000), (70, 70_000), (0.07, 70), ("300m", 300), (".5", 500), ("+1.", 1000)],
        *[("1500u", 2), ("1n", 1), ("-1500u", -2), ("2Ki", 2_048_000), ("1e3", 10**6)],
        *[("1E-3", 1), ("1E", 10**21), ("1Ei", 2**60 * 1000), ("0.1n", 1)],
    ],
)
def test_quantities_round_up_to_thousandths(quantity: str | float, thousandths: int) -> None:
    assert milli(quantity) == thousandths


@pytest.mark.parametrize("text", ["", "1x", "m", "1 ", "1KiB", "--1", "1.2.3", "٣", "0x1"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="quantities must match the regular expression"):
        milli(text)


@given(st.decimals(Decimal("0.000001"), Decimal(1000), places=6))
def test_a_double_is_as_near_as_the_controllers(value: Decimal) -> None:
    assert approximate(str(value)) == pytest.approx(float(value), rel=1e-15)
    assert approximate("0.1") == 0.1
