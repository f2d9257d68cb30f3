"""How near a gather of random rows comes to memcpy: 2048 rows x 13 levels from a store of 1 GB in the page cache.

    python tests/benchmarks/gather.py [--folder DIR] [--rows N]

One thread (zarr has its own). Every figure is a ratio of medians of five rounds. The ways take turns batch by batch
(A B A B) and CPU time is counted, so that a busy machine disturbs all of them alike. The store is made once, in a
temporary folder or kept in DIR. cache/README.md says what to expect.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

import h5py
import numpy as np
import torch
import zarr

from layerbank.cache import ArraySpec, CacheSpec, CacheWriter, TokenCache, export_hdf5
from layerbank.cache.format import token_array
from layerbank.cache.mapping import ChunkRows
from layerbank.cache.reader import _chunk_files

NUM_LEVELS, EMBED_DIM, BATCH = 13, 768, 2048
ROUNDS, BATCHES = 5, 10


def make_store(path: Path, num_rows: int) -> None:
    """13 levels of cls tokens, [N, 768] float16: 20 KB a row."""
    levels = [*(f"block.{i}" for i in range(NUM_LEVELS - 1)), "final"]
    spec = CacheSpec(
        architecture="none",
        weights="0" * 16,
        tap="norm2",
        token_rule="1",
        transform="none",
        compute_dtype="float32",
        storage_dtype="float16",
        manifest="0" * 16,
        num_rows=num_rows,
        backbone="none",
        dataset="noise",
        split="train",
    )
    arrays = [ArraySpec(level=level, kind="cls", row_shape=(EMBED_DIM,)) for level in levels]
    ids = [str(row) for row in range(num_rows)]
    rng = np.random.default_rng(0)
    labels = np.zeros(num_rows, dtype=np.int64)
    with CacheWriter.open(path, spec, arrays, labels=labels, sample_ids=ids, batch_size=512) as writer:
        for batch in writer.pending():
            tokens = {
                array.name: rng.standard_normal((len(batch), EMBED_DIM), dtype=np.float32).astype(np.float16)
                for array in batch.arrays
            }
            writer.append(batch, tokens, content_hashes=np.arange(batch.start, batch.stop, dtype=np.uint64))
        writer.complete()


def compare(
    ways: dict[str, Callable[[torch.Tensor], object]], num_rows: int, slow: Collection[str] = ()
) -> dict[str, float]:
    """Median CPU seconds a batch of each way; the `slow` ones take part in the first batch of a round only."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-1, ROUNDS):  # the first is a warm-up
        generator = torch.Generator().manual_seed(round_ + 1)
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for index in range(BATCHES):
            for name, way in ways.items():
                rows = torch.randint(
                    num_rows, (BATCH,), generator=generator
                )  # others: no way warms the cache for the next
                if index == 0 or name not in slow:
                    started = time.process_time()
                    way(rows)
                    spent[name].append(time.process_time() - started)
        if round_ >= 0:
            for name, seconds in spent.items():
                times[name].append(statistics.fmean(seconds))
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def show(title: str, seconds: dict[str, float], reference: str) -> None:
    print(f"\n{title}\n{'':44}{'ratio':>8}{'GB/s':>8}")
    size_bytes = BATCH * EMBED_DIM * 2 * (NUM_LEVELS if "13" in title else 1)
    for name, value in seconds.items():
        print(f"{name:44}{value / seconds[reference]:8.2f}{size_bytes / value / 1e9:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the store here")
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        path, file = folder / "noise.zarr", folder / "noise.h5"
        if not path.exists():
            make_store(path, options.rows)
            export_hdf5(path, file)
        measure(path, file)


def measure(path: Path, file: Path) -> None:
    cache = TokenCache.open(path)
    opened = [cache.tokens(level, "cls") for level in cache.levels]
    maps = [tokens.contiguous for tokens in opened]
    assert all(values is not None for values in maps), "this system has no contiguous maps"
    tensors = [torch.from_numpy(values) for values in maps]
    for tensor in tensors:
        tensor.sum()  # everything into the page cache and the page tables
    outs = [torch.empty(BATCH, EMBED_DIM, dtype=torch.float16) for _ in tensors]
    source = torch.randn(NUM_LEVELS * 4 * BATCH, EMBED_DIM).half()  # 164 MB: not in any cache
    in_ram = [tensor.clone() for tensor in tensors]
    portable = [
        ChunkRows(_chunk_files(path, token_array(cache._header, array.name))) for array in cache.arrays.values()
    ]
    zarrays = [zarr.open_array(path / array.name, mode="r") for array in cache.arrays.values()]
    turn = iter(range(10**9))

    def memcpy(num_levels: int) -> None:
        for level in range(num_levels):
            start = next(turn) % (NUM_LEVELS * 4) * BATCH
            outs[level].copy_(source[start : start + BATCH])

    def select(values: list[torch.Tensor], rows: torch.Tensor, num_levels: int) -> None:
        for level in range(num_levels):
            torch.index_select(values[level], 0, rows, out=outs[level])

    def take(rows: torch.Tensor, num_levels: int) -> None:
        for level in range(num_levels):
            opened[level].take(rows.numpy(), outs[level].numpy())

    def fresh(rows: torch.Tensor) -> list[torch.Tensor]:
        return [torch.index_select(values, 0, rows) for values in tensors]

    def by_chunk(rows: torch.Tensor, num_levels: int) -> None:
        for level in range(num_levels):
            portable[level].gather(rows.numpy(), outs[level].numpy())

    def sorted_first(rows: torch.Tensor) -> None:
        select(tensors, rows.sort().values, NUM_LEVELS)

    seconds = compare(
        {
            "memcpy of the same bytes": lambda rows: memcpy(NUM_LEVELS),
            "map, torch.index_select(out=)": lambda rows: select(tensors, rows, NUM_LEVELS),
            "in RAM, torch.index_select(out=)": lambda rows: select(in_ram, rows, NUM_LEVELS),
            "map, TokenArray.take(out=)": lambda rows: take(rows, NUM_LEVELS),
            "map, rows sorted first": sorted_first,
            "map, a fresh output each time": fresh,
            "portable, chunk by chunk": lambda rows: by_chunk(rows, NUM_LEVELS),
        },
        cache.num_rows,
    )
    show(f"2048 random rows x 13 levels of {cache.num_rows} rows", seconds, "memcpy of the same bytes")
    with h5py.File(file) as h5:
        dataset = h5["tokens/final/cls"]
        seconds = compare(
            {
                "in RAM, torch.index_select(out=)": lambda rows: select(in_ram, rows, 1),
                "map, torch.index_select(out=)": lambda rows: select(tensors, rows, 1),
                "map, TokenArray.take(out=)": lambda rows: take(rows, 1),
                "portable, chunk by chunk": lambda rows: by_chunk(rows, 1),
                "h5py, sorted rows": lambda rows: dataset[np.unique(rows.numpy())],
                "zarr, oindex": lambda rows: zarrays[0].oindex[rows.numpy()],
                "memcpy of the same bytes": lambda rows: memcpy(1),
            },
            cache.num_rows,
            slow={"h5py, sorted rows", "zarr, oindex"},
        )
    show("2048 random rows x 1 level", seconds, "in RAM, torch.index_select(out=)")
    data_bytes = cache.num_rows * NUM_LEVELS * EMBED_DIM * 2
    disk_bytes = sum(path_.stat().st_size for path_ in path.rglob("*") if path_.is_file())
    print(f"\nbytes on disk / bytes of tokens: {disk_bytes / data_bytes:.4f}")


if __name__ == "__main__":
    main()
