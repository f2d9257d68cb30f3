"""Ray, connected to a cluster or started on this machine. The only module that imports it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from ..errors import RequestError, WorkError

OBJECT_STORE_BYTES = 128 << 20  # of a Ray started here: events go through it, images and tokens do not
CONNECT_TIMEOUT_S = 10.0
HEAD_CHECK_S = 5.0  # between two checks of the head
HEAD_TIMEOUT_S = 20.0  # after which a head is lost; at 60 Ray ends the program, in the middle of whatever it does


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Yield the module `ray`, connected to a cluster.

    Raises:
        RequestError: Ray is not installed, or `RAY_ADDRESS` names no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise RequestError("executors.ray_not_installed", reason=error) from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is not None:
        check_address(address)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is not None:
            reason = " ".join(str(error).split())[:300]
            raise RequestError("executors.no_ray_cluster", address=address, reason=reason) from error
        raise
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Ask the head before Ray does, which takes minutes to give up.

    Args:
        address: `host:port` of the head, or `auto`.

    Raises:
        RequestError: there is no answer, or it is the address of Ray's client server.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise RequestError("executors.bad_ray_address", address=address)
    if (reason := _connection_error(address)) is not None:
        raise RequestError("executors.no_ray_cluster", address=address, reason=reason)


class HeadCheck:
    """Checks that the head of the cluster still answers: without it Ray waits and says nothing.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._next_check = 0.0

    def require(self, *, now: bool = False) -> None:
        """Ask the head, every `HEAD_CHECK_S` or now; return when it answers.

        Raises:
            WorkError: it does not answer for `HEAD_TIMEOUT_S`.
        """
        if not now and time.monotonic() < self._next_check:
            return
        deadline = time.monotonic() + HEAD_TIMEOUT_S
        while (reason := _connection_error(self._address)) is not None:
            if time.monotonic() > deadline:
                raise WorkError(
                    "executors.ray_head_lost",
                    address=self._address,
                    timeout_s=f"{HEAD_TIMEOUT_S:.0f}",
                    reason=reason,
                )
            time.sleep(HEAD_TIMEOUT_S / 20)
        self._next_check = time.monotonic() + HEAD_CHECK_S


def _connection_error(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return str(error)
    return None
