"""What views buy and cost: accuracy, bytes and seconds for 0, 2 and 4 views of each training image of the demo's digits.

    python tests/benchmarks/views.py --train 400 --seeds 0,1,2

One store with four views; fewer are its first ones. Digits are cropped mildly and not mirrored: a mirrored digit is another sign.
Prints a table: balanced accuracy on the same 800 test images, mean and deviation over seeds, of every probe and number of views.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

MOST_VIEWS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=400, help="training images [400]")
    parser.add_argument("--seeds", default="0,1,2", help="of split, weights, order, jitter [0,1,2]")
    parser.add_argument("--probes", default="linear-cls,alf", help="names [linear-cls,alf]")
    parser.add_argument("--scale", default="0.6", help="smallest share of the area that a view keeps [0.6]")
    parser.add_argument("--work", type=Path, help="folder of stores and runs [a temporary one]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments, arguments.work or Path(temporary))


def measure(arguments: argparse.Namespace, work: Path) -> None:
    found: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for num_views in (0, 2, MOST_VIEWS):
        command = [
            *(sys.executable, "-m", "layerbank", "probe", "--json", "--model", "demo/vit-s-focus"),
            *("--data", f"demo:digits?train={arguments.train}&test=800", "--probe", arguments.probes),
            *("--views", str(MOST_VIEWS), "--train-views", str(num_views), "--view-scale", arguments.scale),
            *("--no-view-flip", "--protocol", "quick", "--seed", arguments.seeds),
            *("--cache", str(work / "caches"), "--runs", str(work / "runs")),
        ]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for row in answer["rows"]:
            test = row["test"]["balanced_accuracy"]
            found[row["probe"], num_views].append(
                {"test": 100 * test, "validation": 100 * row["validation"], "seconds": sum(row["seconds"].values())}
            )
    (store,) = (work / "caches").glob("*/train/*.zarr")
    size_bytes = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    share = size_bytes / (1 + MOST_VIEWS)
    print(f"{arguments.train} training images, seeds {arguments.seeds}, crops of {arguments.scale}-1 of the area\n")
    print("| probe | views | test | validation | seconds / 0 views | bytes |\n|---|---|---|---|---|---|")
    for (probe, num_views), rows in sorted(found.items(), key=lambda item: (item[0][0] != "linear-cls", item[0])):
        mean = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
        spread = statistics.stdev(row["test"] for row in rows) if len(rows) > 1 else 0.0
        base = statistics.mean(row["seconds"] for row in found[probe, 0])
        print(
            f"| {probe} | {num_views} | {mean['test']:.1f} ± {spread:.1f} | {mean['validation']:.1f} "
            f"| {mean['seconds'] / base:.1f} | {share * (1 + num_views) / 1e6:.1f} MB |"
        )


if __name__ == "__main__":
    main()
