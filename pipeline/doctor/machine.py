"""The machine: accelerators, cores, threads, memory, limits of the process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..extraction.meter import num_cores
from ..memory import available_memory_bytes
from ..quantities import size
from .finding import OK, PROBLEM, WARNING, Finding, first_line
from .libraries import BROKEN

LITTLE_MEMORY_BYTES = 2 << 30  # torch, timm and a B model take about this
LITTLE_SHARED_BYTES = 256 << 20  # two workers with batches of 256 images ahead; containers have 64 MiB unless told
FEW_OPEN_FILES = 1024
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def check_gpu(torch: Any = None, dev: Path = Path("/dev")) -> list[Finding]:
    """Whether torch can compute on a GPU, and if there is one that it cannot use, why.

    Args:
        torch: the module; None imports it.
        dev: where the system shows its devices.
    """
    if torch is None:
        try:
            import torch
        except BROKEN:
            return [Finding("GPU", WARNING, "not known without torch", "Mend the import of torch first.")]
    seen = any((dev / name).exists() for name in ("nvidiactl", "nvidia0", "dxg", "kfd"))
    if torch.cuda.is_available():
        return [_try_gpu(torch, number) for number in range(torch.cuda.device_count())]
    if hasattr(torch.backends, "mps") and torch.backends.mps.is_available():
        todo = "Nothing was measured there; without --device mps layerbank computes on the CPU."
        return [Finding("GPU", OK, "Apple's (mps)", todo)]
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        found = f"torch {torch.__version__} is a build without CUDA"
        if seen:
            return [Finding("GPU", WARNING, f"there is one, but {found}", "Install a torch built for it.")]
        return [Finding("GPU", OK, f"none seen; {found}")]
    if not seen:
        return [Finding("GPU", OK, "none seen, computing on the CPU")]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return [Finding("GPU", WARNING, f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "Unset it to use the GPU.")]
    try:
        torch.cuda.init()
        why = "torch does not say why"
    except (RuntimeError, AssertionError) as error:
        why = first_line(error)
    todo = f"The driver has to be new enough for CUDA {torch.version.cuda}: update it, or install a torch for an older CUDA."
    return [Finding("GPU", PROBLEM, f"there is one that torch cannot use: {why}", todo)]


def check_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> list[Finding]:
    """Cores that this process may use, and how much of them a control group lets it have."""
    cores, all_cores = num_cores(), os.cpu_count() or 1
    quota = cpu_quota(cgroups)
    found = f"{cores} of {all_cores}" if cores < all_cores else str(cores)
    if quota is not None and quota < cores:
        threads = max(1, int(quota))
        todo = f"Threads beyond that only wait: set OMP_NUM_THREADS={threads}."
        return [Finding("cores", WARNING, f"{found}, but a control group gives the time of {quota:.1f}", todo)]
    return [Finding("cores", OK, found)]


def cpu_quota(cgroups: Path) -> float | None:
    """Cores that the control group at the root of this process's view may use at a time; None without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        try:
            words = " ".join((cgroups / name).read_text() for name in names).split()
        except OSError:
            continue
        if len(words) == 2 and words[0].isdigit():
            return int(words[0]) / int(words[1])
    return None


def check_threads(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Whether the environment makes torch use fewer or more threads than there are cores."""
    cores = num_cores()
    findings = []
    for name in THREADS:
        value = environment.get(name)
        if value is None:
            continue
        if not value.isdigit() or int(value) == 0:
            findings.append(Finding("threads", WARNING, f"{name}={value} is no number of threads", f"Unset {name}."))
        elif int(value) != cores:
            less = (
                "only so many are used on a CPU"
                if int(value) < cores
                else "more threads than cores wait for each other"
            )
            findings.append(
                Finding("threads", WARNING, f"{name}={value}, with {cores} cores: {less}", f"Unset {name}.")
            )
    return findings or [Finding("threads", OK, "one a core")]


def check_memory() -> list[Finding]:
    """Memory that can be had now, of the machine or of the control group."""
    available = available_memory_bytes()
    if available < LITTLE_MEMORY_BYTES:
        todo = "Close other programs, or raise the limit of the container: a B model alone takes about 2 GB."
        return [Finding("memory", WARNING, f"{size(available)} can be had", todo)]
    return [Finding("memory", OK, f"{size(available)} can be had")]


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """Where decoding processes hand over their images."""
    if not folder.is_dir():
        return [Finding("shared memory", OK, "of the system's own kind")]
    free = shutil.disk_usage(folder).free
    if free < LITTLE_SHARED_BYTES:
        todo = "Give the container more (docker run --shm-size 1g), or decode without workers: --workers 0."
        return [Finding("shared memory", WARNING, f"{size(free)} free in {folder}", todo)]
    return [Finding("shared memory", OK, f"{size(free)} free in {folder}")]


def check_open_files() -> list[Finding]:
    """How many files a process may hold open: a chunk that is mapped is one where chunks are mapped one by one."""
    try:
        import resource
    except ImportError:  # Windows
        return [Finding("open files", OK, "no limit to ask for")]
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < FEW_OPEN_FILES:
        most = "more" if hard == resource.RLIM_INFINITY else str(hard)
        return [Finding("open files", WARNING, f"at most {limit}", f"Raise it before you start: ulimit -n {most}.")]
    return [Finding("open files", OK, f"at most {limit:,}")]


def _try_gpu(torch: Any, number: int) -> Finding:
    """A small product on it: a build without code for this GPU is found only there."""
    properties = torch.cuda.get_device_properties(number)
    found = f"{properties.name}, {size(properties.total_memory)}, CUDA {torch.version.cuda}"
    name = f"GPU cuda:{number}"
    try:
        ones = torch.ones(8, 8, device=f"cuda:{number}")
        right = float((ones @ ones).sum()) == 512
    except RuntimeError as error:
        todo = "This torch has no code for this GPU, or another program has taken it: install a torch built for it."
        return Finding(name, PROBLEM, f"{found}: {first_line(error)}", todo)
    if not right:
        return Finding(name, PROBLEM, f"{found}: a product came out wrong", "Do not trust this GPU.")
    return Finding(name, OK, found)
