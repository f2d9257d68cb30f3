"""How near a gather of random rows comes to memcpy: 2048 rows x 13 levels from a store of 1 GB in the page cache.

    python tests/benchmarks/gather.py [--folder DIR] [--rows N] [--only ways|stores]

`ways` compares the ways of reading one store, `stores` the same rows in one store and in five.

One thread (zarr has its own). Every figure is a ratio of medians of five rounds. The ways take turns batch by batch
(A B A B) and CPU time is counted, so that a busy machine disturbs all of them alike. The stores are made once, in a
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
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
import zarr
from noise_stores import write_rows

from layerbank.cache import ArraySpec, TokenArray, TokenStore, export_hdf5
from layerbank.cache.format import token_array
from layerbank.cache.mapping import ChunkFiles, ChunkRows, JoinedRows, join_rows, map_rows, part_starts
from layerbank.cache.reader import StoreFiles, chunk_files

NUM_LEVELS, EMBED_DIM, BATCH = 13, 768, 2048
ROUNDS, BATCHES = 5, 10
NUM_STORES = 5


# 13 levels of cls tokens, [N, 768] float16: 20 KB a row
LEVELS = [*(f"block.{number}" for number in range(NUM_LEVELS - 1)), "final"]
ARRAYS = [ArraySpec(level=level, kind="cls", row_shape=(EMBED_DIM,)) for level in LEVELS]


def compare(
    ways: dict[str, Callable[[torch.Tensor], object]],
    num_rows: int,
    slow: Collection[str] = (),
    num_batches: int = BATCHES,
) -> dict[str, float]:
    """Median CPU seconds a batch of each way; the `slow` ones take part in the first batch of a round only."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-1, ROUNDS):  # the first is a warm-up
        generator = torch.Generator().manual_seed(round_ + 1)
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for index in range(num_batches):
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
    parser.add_argument("--only", choices=["ways", "stores"], help="one of the two parts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        path, file = folder / "noise.zarr", folder / "noise.h5"
        if not path.exists():
            rng = np.random.default_rng(0)
            write_rows(
                path,
                range(options.rows),
                ARRAYS,
                lambda _, start, stop: rng.standard_normal((stop - start, EMBED_DIM), np.float32).astype(np.float16),
            )
        if options.only != "stores":
            if not file.exists():
                export_hdf5(path, file)
            measure(path, file)
        if options.only != "ways":
            measure_stores(path, make_parts(path))


def make_parts(path: Path) -> list[Path]:
    """The rows of a store in five stores."""
    whole = TokenStore.open(path)
    num_rows = whole.num_rows // NUM_STORES
    parts = [path.with_name(f"part{part}.zarr") for part in range(NUM_STORES)]
    for part, at in enumerate(parts):
        if not at.exists():
            numbers = range(part * num_rows, (part + 1) * num_rows)
            write_rows(
                at, numbers, ARRAYS, lambda array, start, stop: whole.tokens(array.level, "cls").read(start, stop)
            )
    return parts


def measure(path: Path, file: Path) -> None:
    cache = TokenStore.open(path)
    opened = [cache.tokens(level, "cls") for level in cache.levels]
    maps = [tokens.contiguous for tokens in opened]
    assert all(values is not None for values in maps), "this system has no contiguous maps"
    tensors = [torch.from_numpy(values) for values in maps]
    for tensor in tensors:
        tensor.sum()  # everything into the page cache and the page tables
    outs = [torch.empty(BATCH, EMBED_DIM, dtype=torch.float16) for _ in tensors]
    source = torch.randn(NUM_LEVELS * 4 * BATCH, EMBED_DIM).half()  # 164 MB: not in any cache
    in_ram = [tensor.clone() for tensor in tensors]
    portable = [ChunkRows(files_of(cache, level)) for level in cache.levels]
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


def measure_stores(path: Path, part_paths: list[Path]) -> None:
    """The same rows in one store and in five: gathers of random, ascending and repeated rows, and the cost of opening."""
    whole, opened = TokenStore.open(path), [TokenStore.open(part) for part in part_paths]
    num_rows = NUM_STORES * opened[0].num_rows
    files = [[files_of(part, level) for part in opened] for level in whole.levels]
    one = [whole.tokens(level, "cls") for level in whole.levels]
    five = [TokenArray(level, join_rows(parts), "float16") for level, parts in zip(whole.levels, files, strict=True)]
    assert all(tokens.contiguous is not None for tokens in one + five), "this system has no contiguous maps"
    one_by_one = [TokenArray("", JoinedRows([map_rows(part) for part in parts]), "float16") for parts in files]
    starts = part_starts([part.num_rows for part in opened])
    positions = np.concatenate([start + np.arange(part.num_rows) for start, part in zip(starts, opened, strict=True)])
    outs = [np.empty((BATCH, EMBED_DIM), np.float16) for _ in one]
    for single, joined, parts in zip(one, five, one_by_one, strict=True):  # the same bytes; everything into page tables
        for start in range(0, num_rows, BATCH):
            expected = single.read(start, min(start + BATCH, num_rows))
            chosen = positions[start : start + BATCH]
            assert np.array_equal(joined.take(chosen), expected)
            assert np.array_equal(parts.take(chosen), expected)

    def take(
        arrays: list[TokenArray],
        order: Callable[[torch.Tensor], torch.Tensor],
        where: np.ndarray | None,
        rows: torch.Tensor,
    ) -> None:
        ordered = order(rows).numpy()
        for tokens, out in zip(arrays, outs, strict=False):
            tokens.take(ordered if where is None else where[ordered], out)

    orders: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "random": lambda rows: rows,
        "ascending": lambda rows: rows.sort().values,
        "each twice, random": lambda rows: rows[: BATCH // 2].repeat(2),
    }
    for levels in (NUM_LEVELS, 1):
        for name, order in orders.items():
            ways = {
                "one store": partial(take, one[:levels], order, None),
                "five stores": partial(take, five[:levels], order, positions),
            }
            seconds = compare(ways, num_rows, num_batches=BATCHES * NUM_LEVELS // levels)
            show(f"2048 rows, {name} x {levels} levels of {num_rows} rows", seconds, "one store")
        ways = {
            "one store": partial(take, one[:levels], orders["random"], None),
            "five stores, one after the other": partial(take, one_by_one[:levels], orders["random"], positions),
        }
        show(f"2048 rows, random x {levels} levels of {num_rows} rows", compare(ways, num_rows), "one store")
    show_opening([[files_of(whole, level)] for level in whole.levels], files)


def show_opening(one: list[list[ChunkFiles]], five: list[list[ChunkFiles]]) -> None:
    """CPU time to map the 13 arrays of 1, 5 and 50 stores; 50 are the five ten times."""
    print(f"\n{'maps of 13 arrays':44}{'files':>8}{'ms':>8}{'us/file':>8}{'TB addr':>8}")
    for name, arrays in {"1 store": one, "5 stores": five, "50 stores": [parts * 10 for parts in five]}.items():
        seconds = []
        for _ in range(ROUNDS):
            started = time.process_time()
            rows = [join_rows(parts) for parts in arrays]
            seconds.append(time.process_time() - started)
        num_files = sum(len(part.files) for parts in arrays for part in parts)
        median, address_bytes = statistics.median(seconds), sum(one.shape[0] * EMBED_DIM * 2 for one in rows)
        print(f"{name:44}{num_files:8}{median * 1e3:8.1f}{median / num_files * 1e6:8.1f}{address_bytes / 1e12:8.3f}")


def files_of(cache: TokenStore, level: str) -> ChunkFiles:
    return chunk_files(cache.path, token_array(StoreFiles.read(cache.path).header, cache.arrays[level, "cls"].name))


if __name__ == "__main__":
    main()
