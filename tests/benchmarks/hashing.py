"""What does it cost to know images by their content?

    python tests/benchmarks/hashing.py [--images 2000] [--repeats 9] [--index-rows 1000000]

Hashing of image files, and of a tar of them, against a plain read of the same files, in turns: the ratio is plain / hashing, so
1 is a hash for free. Wall time and CPU time are given, because other programs disturb the first more. Then the content
index of many files: its size, and the seconds to load it and to look all files up in it.
"""

from __future__ import annotations

import argparse
import io
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jpegs import make_jpegs
from machine import describe_machine
from numpy.typing import NDArray

from layerbank.cache.index import STATUS, ContentIndex, read_index, write_index
from layerbank.data.image_set import identify
from layerbank.data.sources import open_source

DISTINCT = 50
BLOCK = 1 << 20


def write_images(folder: Path, count: int) -> None:
    """FOLDER/files/train/<class>/<n>.jpg of about 100 kB, and the same images in FOLDER/tars/train/0.tar."""
    encoded = make_jpegs(DISTINCT, quality=99, subsampling=0)
    (folder / "tars" / "train").mkdir(parents=True)
    with tarfile.open(folder / "tars" / "train" / "0.tar", "w") as tar:
        for number in range(count):
            content = encoded[number % DISTINCT] + number.to_bytes(4, "little")
            path = folder / "files" / "train" / str(number % 2) / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            for name, data in ((f"{number:05}.jpg", content), (f"{number:05}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def read_plainly(paths: list[Path]) -> None:
    for path in paths:
        with open(path, "rb") as file:
            while file.read(BLOCK):
                pass


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(uri: str, folder: Path, repeats: int) -> None:
    source = open_source(uri, "train")
    paths = [Path(path) for path in source.files()[0]]
    size_bytes = sum(path.stat().st_size for path in paths)
    cache = folder / "cache"
    plain, hashing = [], []
    for _ in range(repeats):
        plain.append(seconds(lambda: read_plainly(paths)))
        shutil.rmtree(cache, ignore_errors=True)
        hashing.append(seconds(lambda: identify(source, cache)))
    again = statistics.median(seconds(lambda: identify(source, cache))[0] for _ in range(repeats))
    for number, name in enumerate(("wall", "CPU")):
        ratio = statistics.median(a[number] / b[number] for a, b in zip(plain, hashing, strict=True))
        rate = size_bytes / statistics.median(one[number] for one in hashing) / 1e6
        print(f"{uri.partition(':')[0]:7} {name:4} plain / hashing {ratio:5.2f}   {rate:7,.0f} MB/s hashed")
    print(f"{uri.partition(':')[0]:7} nothing changed: {len(source) / again:,.0f} images/s")


def look_up(path: Path, keys: NDArray[np.uint64], status: NDArray[np.void]) -> None:
    index = read_index(path, "benchmark")
    index.hashes_of(index.find(keys, np.ones(len(keys), dtype=np.int64), lambda files: status[files]))


def measure_index(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    keys, hashes = (rng.integers(1, 2**63, count, dtype=np.uint64) for _ in range(2))
    status = np.zeros(count, dtype=STATUS)
    status["size"], status["inode"] = 100_000, np.arange(count)
    ones, recorded = np.ones(count, dtype=np.int64), np.full(count, time.time_ns())
    path = folder / "large.index"
    index = ContentIndex.of_files(keys, status, recorded, ones, hashes, hashes)
    written, _ = seconds(lambda: write_index([path], index, "benchmark"))
    for name, wanted in (("the same files", slice(None)), ("one file less", slice(1, None))):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loaded, _ = seconds(lambda: read_index(path, "benchmark"))
        found, _ = seconds(lambda wanted=wanted: look_up(path, keys[wanted], status[wanted]))  # type: ignore[misc]
        found -= loaded
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        print(f"index, {name}: {loaded:.2f} s to load, {found:.2f} s to look up, {more:.0f} MB more at the peak")
    print(f"index of {count:,} files: {path.stat().st_size / 1e6:.0f} MB, {written:.2f} s to write")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--index-rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, arguments.images)
        time.sleep(2.5)  # files that are younger than two seconds are not recorded
        compare(f"folder:{folder}/files", folder, arguments.repeats)
        compare(f"wds:{folder}/tars", folder, arguments.repeats)
        measure_index(folder, arguments.index_rows)


if __name__ == "__main__":
    main()
