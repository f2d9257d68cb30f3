"""What a measurement was taken on, for its first line: a figure without machine and commit says nothing."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch


def describe_machine() -> str:
    """Processor, torch, threads and the commit of the tree that is measured."""
    return f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, commit {_commit()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    fields = dict(
        tuple(part.strip() for part in line.split(":", 1))
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if ":" in line
    )
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
