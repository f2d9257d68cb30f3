"""Ray, connected to a cluster or to one of its own on this machine. The only module that imports it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from ..errors import RequestError, WorkError

OBJECT_STORE_BYTES = 128 << 20  # of a Ray of our own: events go through it, images and tokens do not
ANSWER_S = 10.0
LOOK_S = 5.0  # between two looks at the head
SILENCE_S = 20.0  # after which a head is lost; at 60 Ray ends the program, in the middle of whatever it does


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
    if (problem := _why_silent(host, int(port))) is not None:
        raise _no_cluster(address, problem)


class Head:
    """The head of the cluster while work is done: Ray waits for one that is lost, and says nothing.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._look_at = 0.0

    def require(self, *, now: bool = False) -> None:
        """Ask whether it is there, every few seconds or now; returns when it answers.

        Raises:
            WorkError: it does not, for `SILENCE_S`.
        """
        if not now and time.monotonic() < self._look_at:
            return
        host, _, port = self._address.rpartition(":")
        deadline = time.monotonic() + SILENCE_S
        while (problem := _why_silent(host, int(port))) is not None:
            if time.monotonic() > deadline:
                raise WorkError(
                    where=f"the Ray cluster of {self._address}",
                    expected="a head that is there until the work is done",
                    got=f"none for {SILENCE_S:.0f} s: {problem}",
                    todo="What was committed is kept: start the cluster again, then run the same command again. What is left of "
                    "the lost one works on for about a minute and holds its locks so long.",
                )
            time.sleep(SILENCE_S / 20)
        self._look_at = time.monotonic() + LOOK_S


def _why_silent(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host.strip("[]"), port), timeout=ANSWER_S).close()
    except OSError as error:
        return str(error)
    return None


def _no_cluster(address: str, got: str) -> RequestError:
    return RequestError(
        where=f"RAY_ADDRESS={address}",
        expected="host:port of a Ray cluster's head, or auto on one of its machines",
        got=got,
        todo="Start one with `ray start --head`, or unset RAY_ADDRESS: then a Ray of this machine alone is started.",
    )
