"""Run by test_streaming.py in a process of its own: probes from stores ten times larger than the memory allowed.

python tests/starved.py CACHE NUM_ROWS RUNS BUDGET_BYTES PROBE...
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
from token_stores import hashes_of, make_spec

from layerbank.cache import ArraySpec, CacheWriter
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.data.splits.split_rows import wanted_rows
from layerbank.events import Event, MemoryPlanned, TrainingStarted
from layerbank.probes import QUICK, ModuleBank, SimPoolProbe
from layerbank.probes.tasks.multiclass import TASK
from layerbank.probing.attention import draw_attention_map
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import ProbeSpec
from layerbank.probing.tokens.split_tokens import SplitRequest

PROTOCOL = replace(QUICK, lrs=(1e-2,), weight_decays=(1e-4,), epochs=1, min_steps=1, batch_size=256, jitter_std=0.0)
PROBES = {
    "attentive": ProbeSpec(name="attentive", head="attentive", levels=("final",), kinds=("grid4",), num_heads=2),
    "cae": ProbeSpec(name="cae", head="cae", levels=("final",), kinds=("grid4",), num_heads=2),
    "simpool": ProbeSpec(name="simpool", head="simpool", levels=("final",), kinds=("grid4",)),
    "linear": ProbeSpec(name="linear", head="linear", levels=("final",), kinds=("grid4",)),
    "ridge": ProbeSpec(name="ridge", head="ridge", levels=("final",), kinds=("grid4",)),
}
WIDTH, NUM_CLASSES = 128, 10
ROW_BYTES = 16 * WIDTH * 2


def write_stores(folder: Path, num_rows: int) -> tuple[SplitRequest, SplitRequest]:
    """Stores of `num_rows` and a tenth as many, sorted by class, whose tokens say something about it."""
    tokens = np.random.default_rng(0).standard_normal((4096, 16, WIDTH)).astype(np.float16)
    tokens[:, :, :NUM_CLASSES] += 2 * np.eye(NUM_CLASSES, dtype=np.float16)[np.arange(4096) % NUM_CLASSES, None]
    requests = requests_of(folder, num_rows)
    for request in requests:
        rows, labels = wanted_rows(request.record.images, None).rows, request.record.labels
        spec = make_spec(rows=rows, name=request.name.replace("/", "-"))
        writer = CacheWriter.open(
            spec.path(folder),
            spec.model,
            rows,
            [ArraySpec(level="final", kind="grid4", row_shape=(16, WIDTH))],
            name=spec.name,
            sample_ids=request.record.ids,
            batch_size=400,
        )
        with writer:
            for batch in writer.pending():
                numbers = np.arange(batch.start, batch.stop)
                chosen = tokens[numbers % (4096 // NUM_CLASSES) * NUM_CLASSES + labels[numbers]]
                values = {array.name: chosen for array in batch.arrays}
                writer.append(batch, values, content_hashes=rows.hashes[numbers])
            writer.complete()
    return requests


def requests_of(folder: Path, num_rows: int) -> tuple[SplitRequest, SplitRequest]:
    """The requests for the tokens of `write_stores`."""
    train, test = (
        SplitRequest(
            cache_root=folder,
            model=make_spec(1).model,
            tap="norm2",
            record=SplitRecord(
                dataset="sorted",
                split=split,
                ids=[str(row) for row in range(count)],
                labels=np.arange(count) * NUM_CLASSES // count,
                class_names=[str(number) for number in range(NUM_CLASSES)],
                images=ImageSet(
                    hashes=hashes_of(np.arange(count) + first),
                    rule1_hashes=None,
                    is_known=np.ones(count, dtype=np.bool_),
                    keeps_order=True,
                ),
            ),
            rule=None,
            arrays=(("final", "grid4"),),
        )
        for split, count, first in (("train", num_rows, 0), ("test", num_rows // 10, num_rows))
    )
    return train, test


def train(folder: Path, probes: Sequence[str], budget_bytes: int, num_rows: int) -> dict[str, Any]:
    """Write stores and train on them in a process that cannot have more memory; what it says."""
    write_stores(folder, num_rows)
    command = [sys.executable, __file__, folder, str(num_rows), folder / "runs", str(budget_bytes), *probes]
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "tests")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(folder: str, num_rows: str, runs: str, budget: str, *names: str) -> None:
    """Prints one JSON object."""
    torch.set_num_threads(1)
    warm_up()
    splits = requests_of(Path(folder), int(num_rows))
    caches = [split.open() for split in splits]
    for cache in caches:
        for level, kind in cache.arrays:
            cache.tokens(level, kind)
    before = status_bytes()
    # a hard limit: the kernel counts private writable memory, and with it our maps of the stores, which are opened once more
    mapped_bytes = sum(file.stat().st_size for file in Path(folder).rglob("c.*"))
    limit = before["VmData"] + int(budget) + mapped_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    plans: list[MemoryPlanned] = []
    groups: list[tuple[str, ...]] = []
    peak_bytes = 0

    def watch(event: Event) -> None:
        nonlocal peak_bytes
        if isinstance(event, MemoryPlanned):
            plans.append(event)
        if isinstance(event, TrainingStarted):
            groups.append(event.probes)
        grown_bytes = status_bytes()["RssAnon"] - before["RssAnon"]
        peak_bytes = max(peak_bytes, grown_bytes + resident_bytes_of(".zarr"))

    rows = probe(
        *splits,
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
                "groups": groups,
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
        bank.compute_gradients(*batch, torch.full((2,), 0.5, device=device), {}, TASK)
        bank.logits(batch[0])


def resident_bytes_of(name: str) -> int:
    """Pages of mapped files of such a name that this process holds, as the system would add them up in `smaps`, but fast."""
    num_pages, page_bytes = 0, resource.getpagesize()
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if name in line:
                first, end = (int(address, 16) // page_bytes for address in line.split()[0].split("-"))
                entries = np.frombuffer(os.pread(pagemap.fileno(), 8 * (end - first), 8 * first), np.uint64)
                num_pages += int(np.count_nonzero(entries >> np.uint64(63)))  # bit 63: the page is present
    return num_pages * page_bytes


def status_bytes() -> dict[str, int]:
    """The sizes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


if __name__ == "__main__":
    main(*sys.argv[1:])
