"""Ray, connected to a cluster or to one of its own on this machine. The only module that imports it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from ..errors import RequestError

OBJECT_STORE_BYTES = 128 << 20  # of a Ray of our own: events go through it, images and tokens do not
ANSWER_S = 10.0


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Ray, connected to a cluster."""
    try:
        import ray
    except ImportError as error:
        raise RequestError(
            where="--engine ray",
            expected="the package ray",
            got=str(error),
            todo="Install the extra here and on every node: pip install 'layerbank[ray]'.",
        ) from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    if address is not None:
        check_address(address)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that somebody extracts tokens
        how |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(**how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is not None:
            raise _no_cluster(address, " ".join(str(error).split())[:300]) from error
        raise
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Ask the head before Ray does, which takes minutes to say that nobody answers.

    Args:
        address: `host:port` of the head, or `auto`.

    Raises:
        RequestError: nobody answers there, or it is the address of Ray's client server.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise _no_cluster(address, "an address of another form")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, got: str) -> RequestError:
    return RequestError(
        where=f"RAY_ADDRESS={address}",
        expected="host:port of a Ray cluster's head, or auto on one of its machines",
        got=got,
        todo="Start one with `ray start --head`, or unset RAY_ADDRESS: then a Ray of this machine alone is started.",
    )
