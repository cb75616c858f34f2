"""The connection to a Ray cluster, for measuring and for tuning alike."""

from __future__ import annotations

import os
import socket
from typing import Any

from serving.errors import InputError

_PATIENCE_S = 5.0
"""Ray itself tries for minutes, also where something else answers, and then ends the process."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What opens a connection of HTTP/2, and with it of gRPC: the preface and empty settings (RFC 9113)."""
_SETTINGS = 4


def connected(address: str) -> Any:
    """The package ray, connected to a cluster; what is connected already stays so.

    Args:    address: host:port, ray://host:port, or auto for the cluster of this host.
    Raises:  InputError: no package, or no cluster there.
    """
    try:
        import ray
    except ImportError:
        raise InputError(
            f"ray(={address!r}) needs the package ray",
            remedy="Install it: pip install 'llm-workbench[ray]'.",
        ) from None
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():
            _knock(host, int(port))
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise InputError(
            f"ray(={address!r}): no cluster answers there",
            remedy="Start one with `ray start --head`, or leave --ray out.",
        ) from error
    return ray


def _knock(host: str, port: int) -> None:
    """Raise an OSError where nothing answers that could be Ray."""
    with socket.create_connection((host, port), timeout=_PATIENCE_S) as connection:
        if os.environ.get("RAY_USE_TLS") == "1":
            return
        connection.sendall(_HELLO)
        answer = connection.recv(9)
        if len(answer) < 4 or answer[3] != _SETTINGS:
            raise ConnectionError(f"{host}:{port} does not speak gRPC")
