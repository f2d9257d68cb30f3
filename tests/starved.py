"""Run by test_streaming.py in a process of its own: probes from stores ten times larger than the memory allowed.

python tests/starved.py TRAIN TEST RUNS BUDGET_BYTES PROBE...
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from token_stores import make_spec

from layerbank.cache import ArraySpec, CacheWriter, TokenCache
from layerbank.events import Event, MemoryPlanned
from layerbank.probes import QUICK, ModuleBank, SimPoolProbe
from layerbank.probing.attention import draw_attention_map
from layerbank.probing.probe import Store, probe
from layerbank.probing.probe_spec import ProbeSpec

PROTOCOL = replace(QUICK, lrs=(1e-2,), weight_decays=(1e-4,), epochs=1, min_steps=1, batch_size=256, jitter_std=0.0)
PROBES = {
    "attentive": ProbeSpec(name="attentive", head="attentive", levels=("final",), kinds=("grid4",), num_heads=2),
    "cae": ProbeSpec(name="cae", head="cae", levels=("final",), kinds=("grid4",), num_heads=2),
    "simpool": ProbeSpec(name="simpool", head="simpool", levels=("final",), kinds=("grid4",)),
    "linear": ProbeSpec(name="linear", head="linear", levels=("final",), kinds=("grid4",)),
}
WIDTH, NUM_CLASSES = 128, 10
ROW_BYTES = 16 * WIDTH * 2


def write_stores(folder: Path, num_rows: int) -> tuple[Path, Path]:
    """Stores of `num_rows` and a tenth as many, sorted by class, whose tokens say something about it."""
    tokens = np.random.default_rng(0).standard_normal((4096, 16, WIDTH)).astype(np.float16)
    tokens[:, :, :NUM_CLASSES] += 2 * np.eye(NUM_CLASSES, dtype=np.float16)[np.arange(4096) % NUM_CLASSES, None]
    paths = []
    for split, count in (("train", num_rows), ("test", num_rows // 10)):
        spec = make_spec(count, split=split, storage_dtype="float16")
        labels = np.arange(count) * NUM_CLASSES // count
        writer = CacheWriter.open(
            folder / f"{split}.zarr",
            spec,
            [ArraySpec(level="final", kind="grid4", row_shape=(16, WIDTH))],
            labels=labels,
            sample_ids=[str(row) for row in range(count)],
            batch_size=400,
            attributes={"class_names": [str(number) for number in range(NUM_CLASSES)]},
        )
        with writer:
            for batch in writer.pending():
                rows = np.arange(batch.start, batch.stop)
                chosen = tokens[rows % (4096 // NUM_CLASSES) * NUM_CLASSES + labels[rows]]
                writer.append(batch, {"tokens/final/grid4": chosen}, content_hashes=rows.astype(np.uint64))
            writer.complete()
        paths.append(folder / f"{split}.zarr")
    return paths[0], paths[1]


def train(folder: Path, probes: Sequence[str], budget_bytes: int, num_rows: int) -> dict[str, Any]:
    """Write stores and train on them in a process that cannot have more memory; what it says."""
    stores = write_stores(folder, num_rows)
    command = [sys.executable, __file__, *stores, folder / "runs", str(budget_bytes), *probes]
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "tests")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(train: str, test: str, runs: str, budget: str, *names: str) -> None:
    """Prints one JSON object."""
    torch.set_num_threads(1)
    warm_up()
    caches = [TokenCache.open(path) for path in (train, test)]
    for cache in caches:
        for level, kind in cache.arrays:
            cache.tokens(level, kind)
    stores = [Store(cache.path, cache.spec) for cache in caches]
    before = status_bytes()
    # a hard limit: the kernel counts private writable memory, and with it our maps of the stores, which are opened once more
    mapped_bytes = sum(file.stat().st_size for path in (train, test) for file in Path(path).rglob("c.*"))
    limit = before["VmData"] + int(budget) + mapped_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    plans: list[MemoryPlanned] = []
    peak_bytes = 0

    def watch(event: Event) -> None:
        nonlocal peak_bytes
        if isinstance(event, MemoryPlanned):
            plans.append(event)
        grown_bytes = status_bytes()["RssAnon"] - before["RssAnon"]
        peak_bytes = max(peak_bytes, grown_bytes + resident_bytes_of(".zarr"))

    rows = probe(
        stores[0],
        stores[1],
        [PROBES[name] for name in names],
        PROTOCOL,
        Path(runs),
        memory_bytes=int(budget),
        on_event=watch,
    )
    print(
        json.dumps(
            {
                "peak_bytes": peak_bytes,
                "planned_bytes": max(plan.planned_bytes for plan in plans),
                "tokens": [plan.tokens for plan in plans],
                "together_with": [row["together_with"] for row in rows],
                "accuracies": [row["test"] and row["test"]["balanced_accuracy"] for row in rows],
            }
        )
    )


def warm_up() -> None:
    """Load what the first matrix product, optimiser, picture and vmapped probe load."""
    with tempfile.TemporaryDirectory() as folder:
        draw_attention_map(Path(folder) / "map.png", np.ones((1, 1)), np.ones((1, 1)), ["final"], ["grid4"], "nothing")
    weight = torch.ones(64, 64, requires_grad=True)
    (torch.ones(64, 64) @ weight).sum().backward()
    torch.optim.AdamW([weight], fused=True).step()
    for device in ("cpu", "meta"):
        batch = torch.ones(2, 3, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device)
        bank = ModuleBank([SimPoolProbe(8, 2)], device=device)
        bank.compute_gradients(*batch, torch.full((2,), 0.5, device=device), {})
        bank.logits(batch[0])


def resident_bytes_of(name: str) -> int:
    """Pages of mapped files of such a name that this process holds."""
    total, file = 0, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024 if name in file else 0
        elif not line.split()[0].endswith(":"):
            file = line
    return total


def status_bytes() -> dict[str, int]:
    """The sizes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


if __name__ == "__main__":
    main(*sys.argv[1:])
