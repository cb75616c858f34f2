"""Kubernetes' quantities: '70', '300m', 1.5, '2Gi', '1e3'.

Source:  apimachinery, pkg/api/resource/quantity.go, v1.35.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, Strict

_FORM = re.compile(r"([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)(.*)", re.DOTALL)
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]+)")
_SUFFIXES = {suffix: Decimal(1000) ** power for power, suffix in enumerate(("", *"kMGTPE"))}
_SUFFIXES |= {"m": Decimal("1e-3"), "u": Decimal("1e-6"), "n": Decimal("1e-9")}
_SUFFIXES |= {f"{letter}i": Decimal(1024) ** (i + 1) for i, letter in enumerate("KMGTPE")}
_COMPLAINT = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)


@lru_cache(maxsize=4096)
def exact(quantity: str | int | float) -> Decimal:
    """What a quantity says, to the nano, which is as fine as the API server keeps it.

    Raises:  ValueError: not a quantity, in the API server's words.
    """
    found = _FORM.fullmatch(str(quantity))
    if found is None:
        raise ValueError(_COMPLAINT)
    sign, digits, suffix = found.groups()
    exponent = _EXPONENT.fullmatch(suffix)
    if exponent is not None:
        scale = Decimal(1).scaleb(int(exponent[1]))
    elif suffix in _SUFFIXES:
        scale = _SUFFIXES[suffix]
    else:
        raise ValueError(_COMPLAINT)
    # Rounded away from zero before the sign is looked at.
    size = (Decimal(digits) * scale).quantize(Decimal("1e-9"), rounding=ROUND_CEILING)
    return -size if sign == "-" else size


@lru_cache(maxsize=4096)
def milli(quantity: str | int | float) -> int:
    """A quantity in thousandths, rounded up as the API server does: '70' is 70000."""
    value = exact(quantity) * 1000
    rounded = abs(value).to_integral_value(rounding=ROUND_CEILING)
    return int(rounded) if value >= 0 else -int(rounded)


@lru_cache(maxsize=4096)
def approximate(quantity: str | int | float) -> float:
    """A quantity as a double, by the same multiplication as the controller's.

    The API server stores the canonical form, whole numbers of n, u, m or 1, so '0.3' is 300 times 0.001.
    """
    value, exponent = exact(quantity), 0
    while value != value.to_integral_value():
        value, exponent = value * 1000, exponent - 3
    return float(value) * float(f"1e{exponent}")


def quantity(value: float) -> str:
    """The shortest quantity for a value, to a thousandth: 0.3 is '300m', 70.0 is '70'."""
    thousandths = round(value * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def _checked(given: str | int | float) -> str | int | float:
    exact(given)
    return given


Quantity = Annotated[
    Annotated[str, Strict()] | Annotated[int, Strict()] | Annotated[float, Strict()],
    AfterValidator(_checked),
]
"""Kept as it was written, a number or a text."""
