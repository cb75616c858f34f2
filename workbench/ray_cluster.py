"""The connection to a Ray cluster, for measuring and for tuning alike."""

from __future__ import annotations

import socket
from typing import Any

from serving.errors import InputError

_PATIENCE_S = 5.0
"""Ray itself tries for more than a minute."""


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
    if not ray.is_initialized():
        try:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if port.isdigit():
                socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
            ray.init(address=address, log_to_driver=False)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            raise InputError(
                f"ray(={address!r}): no cluster answers there",
                remedy="Start one with `ray start --head`, or leave --ray out.",
            ) from error
    return ray
