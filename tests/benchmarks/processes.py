"""One process against two that share the rows of a store, with as many threads in all, on a CPU.

    python tests/benchmarks/processes.py [--model timm/vit_tiny_patch16_224] [--image-size 64] [--images 1024] [--repeats 3]
    python tests/benchmarks/processes.py --model timm/vit_small_patch16_224 --image-size 224 --images 600 --batch-size 16

Photographs as JPEG, random weights; what `layerbank extract --processes 1` and `2` do, in turns, each with all threads of the
machine shared out. Told are the wall time from the first process that begins with rows to the end, and that of the whole with what
it takes to start processes and open models. The stores are compared byte for byte. For a quiet machine: on a busy one, two
processes get more of it than one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from jpegs import write_jpegs

from layerbank.events import Event, ExtractionStarted, ignore
from layerbank.executors.local import LocalExecutor
from layerbank.executors.workers import run_workers
from layerbank.jobs.extract import extract_share, prepare_shares
from layerbank.jobs.job import ExtractJob

PROCESSES = (1, 2)


def run(job: ExtractJob, root: Path, num_processes: int) -> tuple[float, float, dict[Path, bytes]]:
    """Seconds of the work, seconds of the whole, and the files of the store."""
    started: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, ExtractionStarted):
            started.append(time.perf_counter())

    share = prepare_shares(replace(job, cache_root=root), ignore)
    begin = time.perf_counter()
    run_workers(partial(extract_share, share), LocalExecutor(num_processes), listen)
    end = time.perf_counter()
    (store,) = Path(share.folders[0]).glob("*.zarr")
    return (
        end - started[0],
        end - begin,
        {file.relative_to(store): file.read_bytes() for file in store.rglob("*") if file.is_file()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_tiny_patch16_224")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    works: list[float] = []
    wholes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        job = ExtractJob(
            models=((arguments.model, "random"),),
            data=f"folder:{write_jpegs(Path(folder) / 'photos', arguments.images)}",
            image_size=arguments.image_size,
            precision="float32",
            device="cpu",
            batch_size=arguments.batch_size,
            workers=0,
            splits=("train",),
        )
        for repeat in range(arguments.repeats):
            (work_1, whole_1, one), (work_2, whole_2, two) = (
                run(job, Path(folder) / f"caches-{repeat}-{number}", number) for number in PROCESSES
            )
            if one != two:
                raise SystemExit("the stores differ")
            works.append(work_1 / work_2)
            wholes.append(whole_1 / whole_2)
    print(
        f"{arguments.model} at {arguments.image_size} px, {arguments.images} images: one process / two; the same bytes"
    )
    for name, ratios in (("the work", works), ("with starting", wholes)):
        print(f"  {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
