"""API keys: who asks. Only their SHA-256 is kept; keys are random, so a plain hash is enough."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.errors import InputError
from serving.gateway.errors import ApiError
from serving.gateway.settings import Settings

ANONYMOUS = "anonymous"
_PREFIX = "sk-"


def new_key() -> tuple[str, str]:
    """A fresh key of 192 random bits, and its digest."""
    key = _PREFIX + secrets.token_urlsafe(24)
    return key, digest(key)


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Digests of keys -> tenants."""

    def __init__(self, tenants: Mapping[str, Iterable[str]], *, anonymous: bool) -> None:
        self._tenants = {kept: name for name, kept_of in tenants.items() for kept in kept_of}
        self._anonymous = anonymous or not self._tenants

    @classmethod
    def of(cls, settings: Settings) -> Keys:
        """The keys that the settings name.

        Raises:  InputError: a file that holds something else.
        """
        tenants = {name: tuple(kept) for name, kept in settings.api_keys.items()}
        if settings.api_keys_file is not None:
            for name, kept in _read(settings.api_keys_file).items():
                tenants[name] = (*tenants.get(name, ()), *kept)
        return cls(tenants, anonymous=settings.anonymous)

    def tenant(self, authorization: str | None) -> str:
        """Who sent an Authorization header.

        Raises:  ApiError: 401.
        """
        if authorization:
            scheme, _, key = authorization.partition(" ")
            name = self._tenants.get(digest(key.strip())) if scheme.lower() == "bearer" else None
            if name is not None:
                return name
        if self._anonymous and (not authorization or not self._tenants):
            return ANONYMOUS
        raise ApiError(
            401,
            "Incorrect API key provided." if authorization else "No API key provided.",
            kind="invalid_request_error",
            code="invalid_api_key",
        )


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        found = json.loads(path.read_text())
        tenants = {str(name): tuple(kept) for name, kept in found.items()}
        if not all(
            len(one) == 64 and int(one, 16) >= 0 for kept in tenants.values() for one in kept
        ):
            raise ValueError("a digest has 64 hex digits")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"api_keys_file(={str(path)!r}) cannot be used ({error})",
            remedy='It holds {"tenant": ["<SHA-256 of a key>"]}; `serving keys new` makes one.',
        ) from error
    return tenants
