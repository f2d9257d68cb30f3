"""How much memory probes may use: as much as --memory says, or what the system has available.

On a GPU probes are trained in its own memory, where their tokens lie too if they fit; the host's memory holds buffers only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RequestError
from .quantities import parse_size

if TYPE_CHECKING:
    import torch

HEADROOM = 0.8  # share of the free memory; other programs need some too
UNKNOWN_BYTES = 4 << 30  # if the system reports nothing

_SHORTAGE = re.compile(r"(?:(?:\w+ )?out of memory|can't allocate memory)[^.\n]*")


def memory_for_probes(option: str | None, num_sharers: int = 1) -> int:
    """Return how many bytes of the host's memory probes may use beside what the program uses now.

    Args:
        option: size of the whole program, as on the command line; None is the available memory, less headroom.
        num_sharers: processes of the program; they share equally.

    Raises:
        RequestError: not a size, or the program uses more already.
    """
    if option is None:
        return int(HEADROOM * available_memory_bytes()) // num_sharers
    allowed_bytes, used_bytes = parse_size(option) // num_sharers, anonymous_memory_bytes()
    if allowed_bytes <= used_bytes:
        used = f"{num_sharers * used_bytes / 1e6:,.0f} MB"
        raise RequestError("layerbank.memory_in_use_already", used=used, option=option)
    return allowed_bytes - used_bytes


def free_device_bytes(device: torch.device) -> int:
    """Return how many bytes of a GPU's memory may be used: the free ones, and those that torch keeps of deleted tensors."""
    import torch

    free_bytes, _ = torch.cuda.mem_get_info(device)
    kept_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(HEADROOM * (free_bytes + kept_bytes))


def shortage_of(error: BaseException) -> str | None:
    """Return what an error says about memory that ran out, on a GPU or the host; None for any other error.

    >>> shortage_of(RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error 12"))
    "can't allocate memory: you tried to allocate 8 bytes"
    >>> shortage_of(RuntimeError("CUDA error: out of memory")), shortage_of(MemoryError()), shortage_of(RuntimeError("a bug"))
    ('out of memory', 'no memory left', None)
    """
    import torch

    if isinstance(error, MemoryError):
        return str(error) or "no memory left"
    said = _SHORTAGE.search(str(error))
    if said:
        return said[0]
    return str(error) or "no memory left" if isinstance(error, torch.OutOfMemoryError) else None


def anonymous_memory_bytes(proc: Path = Path("/proc")) -> int:
    """Return the memory of this process without mapped files, in bytes; 0 if the system does not report it."""
    return _kilobytes(proc / "self" / "status", "RssAnon:") or 0


def peak_memory_bytes(proc: Path = Path("/proc")) -> int:
    """Return the peak memory of this process, mapped files included, in bytes; 0 if the system does not report it."""
    return _kilobytes(proc / "self" / "status", "VmHWM:") or 0


def available_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory available without swapping, in bytes: of the machine, or of this process's control groups if less."""
    of_machine = _kilobytes(proc / "meminfo", "MemAvailable:")
    limits = [UNKNOWN_BYTES if of_machine is None else of_machine, *_left_in_groups(proc, cgroups)]
    return max(min(limits), 0)


def _left_in_groups(proc: Path, cgroups: Path) -> list[int]:
    """Return limit minus use of every control group from ours up to the root; cached files do not count as used."""
    left = []
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2, one hierarchy
            mount, names, prefix = cgroups, ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):  # version 1
            mount, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            prefix = "total_"
        else:
            continue
        group = mount / path.lstrip("/")  # inside a container it may not exist: its parents do
        for folder in [group, *group.parents]:
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None:
                fields = dict(line.split() for line in _lines(folder / "memory.stat"))
                files = sum(int(fields.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                left.append(limit - used + files)
            if folder == mount:
                break
    return left


def _number(file: Path) -> int | None:
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max" is no limit


def _kilobytes(file: Path, name: str) -> int | None:
    return next((int(line.split()[1]) * 1024 for line in _lines(file) if line.startswith(name)), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
