"""Label selectors as text, which is how the scale subresource gives them.

Source:  apimachinery, pkg/labels/selector.go, v1.35.
"""

from __future__ import annotations

import re
from functools import lru_cache

_KEY = r"([A-Za-z0-9]([-.\w/]*[A-Za-z0-9])?)"
_VALUE = r"([A-Za-z0-9]([-.\w]*[A-Za-z0-9])?)?"
_VALUES = rf"\(\s*{_VALUE}(\s*,\s*{_VALUE})*\s*\)"
_ONE = rf"\s*(!?\s*{_KEY}|{_KEY}\s*(=|==|!=|>|<)\s*{_VALUE}|{_KEY}\s+(not)?in\s*{_VALUES})\s*"
_SELECTOR = re.compile(rf"{_ONE}(,{_ONE})*")


@lru_cache
def is_selector(text: str) -> bool:
    """Whether a text can be read as a label selector."""
    return _SELECTOR.fullmatch(text) is not None
