"""Change a file at random and read it: in a process of its own, whose memory and time are limited.

Each case follows from a name, a seed and its number alone, so one that fails can be repeated.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import random
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from damaged_runs import MISSING, VALUES, Place, places_in

from layerbank.errors import LayerbankError

LIMIT_S, LIMIT_BYTES = 5.0, 512 << 20
MOST_WAITING_S = 60  # real time, on a busy machine
DEPTH = 100_000


@dataclass(frozen=True)
class Verbatim:
    """A value of a JSON text that no object of Python stands for."""

    text: str


ODD: tuple[Any, ...] = (
    *VALUES,
    *(1e15, 10**15, 2**62, -(2**63), False, "x" * 10_000_000, ["x"] * 100_000, [[0] * 1000] * 100),
    Verbatim("[" * DEPTH + "]" * DEPTH),
    Verbatim('{"a":' * DEPTH + "1" + "}" * DEPTH),
    Verbatim("1e999"),
    Verbatim("1" * 10_000),
)


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A file that layerbank reads.

    Attributes:
        write: makes a folder with a sound file in it; returns the file.
        read: everything that reads the file, given its path; raises LayerbankError, or returns.
        seal: the content with its checksum set right, so that what follows the checksum is read too.
        values: content -> the JSON values in it; None for what is no JSON.
        render: the content with other JSON values.
        contents: made whole from a content, for what has other parts than bytes and JSON: a number of cases beside these.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    seal: Callable[[bytes], bytes] = lambda content: content
    values: Callable[[bytes], Any] | None = None
    render: Callable[[bytes, Any], bytes] = lambda content, values: dump(values)
    contents: Callable[[bytes], Iterator[bytes]] = lambda content: iter(())


def dump(values: Any, **how: Any) -> bytes:
    """JSON with `Verbatim` values as they are."""
    texts: list[str] = []

    def mark(value: Any) -> str:
        assert isinstance(value, Verbatim)
        texts.append(value.text)
        return f"verbatim {len(texts) - 1}"

    text = json.dumps(values, default=mark, **how)
    for number, one in enumerate(texts):
        text = text.replace(f'"verbatim {number}"', one)
    return text.encode()


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """The content after one to three changes: bits flipped, bytes deleted, repeated or replaced, or its end cut off."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        start = draw.randrange(len(content) + 1)
        part = content[start : start + draw.choice((1, 1, 4, 64, 1024))]
        other = {
            "flip": bytes(byte ^ 1 << draw.randrange(8) for byte in part),
            "delete": b"",
            "repeat": part * draw.choice((2, 3, 100)),
            "replace": draw.randbytes(len(part)),
            "zero": bytes(len(part)),
            "most": b"\xff" * len(part),
        }[draw.choice(("flip", "delete", "repeat", "replace", "zero", "most"))]
        content = content[:start] + other + content[start + len(part) :]
        if draw.random() < 0.15:
            content = content[:start]
    return content


def changed_value(values: Any, draw: random.Random) -> Any:
    """The values with an odd one in a random place."""
    places: list[Place] = [*places_in(values)]
    place = draw.choice(places)
    values = copy.deepcopy(values)
    inner: Any = values
    for step in place[:-1]:
        inner = inner[step]
    value = draw.choice(ODD)
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return values


def change(parsed: Parsed, sound: bytes, draw: random.Random) -> bytes:
    if parsed.values is not None and draw.random() < 0.6:
        content = parsed.render(sound, changed_value(parsed.values(sound), draw))
    else:
        content = changed_bytes(sound, draw)
    return parsed.seal(content) if draw.random() < 0.7 else content


def read_changed(name: str, parsed: Parsed, folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Read `count` changed files, in this process, whose memory is limited from then on.

    Returns:
        How many were refused and how many read, the slowest in seconds, and what else happened, case by case.
    """
    faulthandler.enable()
    warnings.simplefilter("ignore")
    sound = parsed.write(folder / "case")
    content = sound.read_bytes()
    shutil.copytree(folder / "case", folder / "sound", symlinks=True)
    with suppress(LayerbankError):
        parsed.read(sound)  # load what is loaded once
    shutil.rmtree(folder / "case", ignore_errors=True)
    whole = [*parsed.contents(content)]
    _limit_memory()
    refused, failures, slowest_s = 0, [], 0.0
    for number in range(count + len(whole)):
        draw = random.Random(f"{name} {seed} {number}")
        case = Path(shutil.copytree(folder / "sound", folder / "case", symlinks=True))
        changed = change(parsed, content, draw) if number < count else whole[number - count]
        sound.write_bytes(changed)
        start_s, problem = time.process_time(), ""
        try:
            with _time_limit(), redirect_stdout(StringIO()):
                parsed.read(sound)
        except LayerbankError:
            refused += 1
        except BaseException:
            problem = traceback.format_exc(limit=-8)
        used_s = time.process_time() - start_s
        slowest_s = max(slowest_s, used_s)
        if problem or used_s > LIMIT_S:
            (folder / f"{name.replace(' ', '-')}-{number}").write_bytes(changed)
            failures.append({"case": number, "problem": problem or f"{used_s:.1f} s"})
        shutil.rmtree(case, ignore_errors=True)
    read = count + len(whole) - refused - len(failures)
    return {"refused": refused, "read": read, "slowest_s": round(slowest_s, 2), "failures": failures}


class TooSlow(BaseException):
    """Nothing that reads a file catches this."""


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*arguments: object) -> None:
        raise TooSlow

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, MOST_WAITING_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory() -> None:
    """Private writable memory, as the kernel counts it: also what was reserved and never touched."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (now_bytes,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now_bytes + LIMIT_BYTES,) * 2)
