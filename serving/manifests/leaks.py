"""Secrets do not belong in a bundle: they are named by reference, and refused where they are seen."""

from __future__ import annotations

import re
from collections.abc import Mapping

from serving.errors import BundleError

_KINDS = {
    "a password in a URL": re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@'\"]*:[^/\s:@'\"$]+@"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "an AWS key": re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(r"\bgh[opsu]_[A-Za-z0-9]{30,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a bearer token": re.compile(
        r"(?i)\bauthorization['\"]?\s*[:=]\s*['\"]?bearer\s+[\w.~+/-]{16,}"
    ),
}


def refuse_secrets(files: Mapping[str, str]) -> None:
    """Look for what has the form of a secret.

    Args:    files: text by path.
    Raises:  BundleError: the first one, by its path; what it says is not repeated.
    """
    for path, text in files.items():
        for kind, form in _KINDS.items():
            found = form.search(text)
            if found:
                line = text.count("\n", 0, found.start()) + 1
                raise BundleError(
                    f"{path}, line {line}, holds {kind}",
                    remedy="Take it out of the plan, and give it by a Kubernetes Secret.",
                )
