"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

import orjson


class ApiError(Exception):
    """An answer that says why there is none.

    Args:    kind: `type` in OpenAI's form, for example invalid_request_error.
             retry_after_s: when to try again, as the Retry-After header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        return orjson.dumps({"error": self.fields})

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: what the client sent cannot be answered."""
    return ApiError(400, message, kind="invalid_request_error", param=param, code=code)


def no_model(asked: object, served: str) -> ApiError:
    """404: a model of another name."""
    return ApiError(
        404,
        f"The model {str(asked)[:100]!r} does not exist; {served!r} does.",
        kind="invalid_request_error",
        param="model",
        code="model_not_found",
    )


def unavailable(message: str, code: str, retry_after_s: int = 1) -> ApiError:
    """503: nobody can answer now."""
    return ApiError(
        503, message, kind="server_error", code=code, retry_after_s=max(1, retry_after_s)
    )


def timed_out(message: str) -> ApiError:
    """504: the model took too long."""
    return ApiError(504, message, kind="timeout_error", code="timeout")


def broken(message: str) -> ApiError:
    """502: the model's server failed."""
    return ApiError(502, message, kind="server_error", code="upstream_failed")
