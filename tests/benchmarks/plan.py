"""What `layerbank plan` says against what `layerbank extract` then takes: bytes, files, peak memory, time.

    python tests/benchmarks/plan.py [--repeats 3] [OPTIONS of layerbank extract]

Each in a process of its own, into an empty cache folder; ratios are forecast / taken, medians of the repeats with all of them
beside. Without options: the demo's model on its 2,400 digits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PEAK = ROOT / "tests" / "peak.py"
ENVIRONMENT = os.environ
DEFAULT = ("--model", "demo/vit-s-focus", "--data", "demo:digits", "--kinds", "cls,ap,grid2")


def run(*arguments: str) -> tuple[str, int, float]:
    """stdout, peak of resident memory in bytes (Linux) and seconds of one command."""
    with tempfile.NamedTemporaryFile("r") as peak:
        command = [sys.executable, str(PEAK), peak.name, *arguments]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout, int(peak.read()), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, options = parser.parse_known_args()
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as cache:
            asked = [*(options or DEFAULT), "--cache", cache, "--json"]
            plan = json.loads(run("plan", *asked)[0])
            _, peak_bytes, seconds = run("extract", *asked)
            files = [file for store in Path(cache).rglob("*.zarr") for file in store.rglob("*") if file.is_file()]
            size_bytes = sum(file.stat().st_size for file in files)
        found["bytes"].append(plan["written_bytes"] / size_bytes)
        found["files"].append(plan["written_files"] / len(files))
        found["peak memory"].append(plan["forecast"]["host_peak_bytes"] / peak_bytes)
        found["time, with the start of the program"].append(plan["forecast"]["total_s"] / seconds)
    for name, values in found.items():
        print(f"{name:40} {statistics.median(values):6.3f}", [round(value, 3) for value in sorted(values)])


if __name__ == "__main__":
    main()
