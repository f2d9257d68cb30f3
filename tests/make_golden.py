"""Make the golden files of format 2: `python tests/make_golden.py stores|runs FILE.zip`, once for a released format.

Of stores, `stores/` has some that this version reads, `newer/` some that it refuses by name. `runs/` has rows of probes of a random
tiny model on the photos of `format1.zip`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from golden_stores import ARRAYS, unpack, write_rows
from probe_runs import PROTOCOL, REQUEST, run, stores_of
from token_stores import hashes_of, make_array, make_model

from layerbank.cache import RowSet, Target, merge_stores, write_target
from layerbank.cache.header import read_header, write_header
from layerbank.probing.probe import run_folder

MODULE_TAP = "module:blocks.{i}.norm2"


def make_stores(folder: Path) -> None:
    root, tall = folder / "stores", RowSet(hashes=hashes_of(np.arange(1200)))
    complete = write_rows(root, tall, arrays=ARRAYS[:2], skipped=dict.fromkeys(range(99, 1200, 100), "cut off"))
    write_rows(root, tall, num_batches=4)  # grid2 in the first row block
    for num_classes in (2, 3):  # replaced once: the first array stays, unused
        label = Target(values=np.arange(1200) % num_classes, type="multiclass", class_names="abc"[:num_classes])
        write_target(complete, "label", label, num_rows=1200)
    ages = np.column_stack([np.arange(1200) / 7, np.full(1200, np.nan)])
    write_target(complete, "age", Target(values=ages, type="regression", source="a table"), num_rows=1200)
    write_rows(
        root, RowSet(hashes=hashes_of(np.arange(2000, 3200))), arrays=ARRAYS[:2], name="unfinished", num_batches=9
    )
    few = RowSet(hashes=hashes_of(np.arange(40)))
    taps = [make_array("block.0", tap=tap) for tap in ("norm2", "block", MODULE_TAP)]
    first = write_rows(root, few, arrays=taps, name="taps")
    model = make_model(storage_dtype="float16,cls=float32")
    views = RowSet(
        hashes=np.repeat(few.hashes, 3), views=np.tile(np.arange(3), 40).astype(np.uint16), view_rule="crops"
    )
    write_rows(root, views, arrays=ARRAYS[2:], name="views", model=model)
    second = write_rows(root, RowSet(hashes=hashes_of(np.arange(30, 70))), arrays=taps, name="more")
    merge_stores([first, second], name="merged")
    optional = write_rows(root, RowSet(hashes=hashes_of(np.arange(50))), name="optional")
    write_header(optional, replace(read_header(optional), unknown={"camera": {"maker": "of a newer layerbank"}}))
    newer = folder / "newer"
    required = write_rows(newer, RowSet(hashes=hashes_of(np.arange(50))), name="required")
    edit(required, lambda attributes: attributes["required"].update(sharding="by row"))
    version3 = write_rows(newer, RowSet(hashes=hashes_of(np.arange(60))), name="version3")
    edit(version3, lambda attributes: attributes.update(format_version=3))


def make_runs(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        backbone, photos = REQUEST.open("cpu"), unpack(Path(work)) / "photos"
        (photos / "test/red/03.png").unlink()  # unreadable
        stores = stores_of(backbone, photos, Path(work) / "cache")
        runs = run_folder(folder / "runs", stores[0])
        protocol = replace(PROTOCOL, epochs=1, min_steps=4)
        run(stores, runs, ("ridge-cls", "linear-cls"), protocol)
        run(stores, runs, ("ridge-cls", "linear-cls"), replace(protocol, seed=1))
        run(stores, runs, ("linear-cls-top2",), protocol)


def edit(store: Path, change: Any) -> None:
    """Change a header's attributes and put its checksum right, which is of the same bytes with zeros in its place."""
    document = json.loads((store / "zarr.json").read_bytes())
    attributes = document["attributes"]
    del attributes["header_crc32c"]
    change(attributes)
    attributes["header_crc32c"] = "0" * 8
    raw = json.dumps(document, indent=2).encode()
    end = b'"\n  }\n}'
    (store / "zarr.json").write_bytes(
        raw.removesuffix(b"0" * 8 + end) + f"{google_crc32c.value(raw):08x}".encode() + end
    )


def pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as opened:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.name.endswith(".lock"):
                opened.writestr(
                    zipfile.ZipInfo(file.relative_to(folder).as_posix(), (2026, 1, 1, 0, 0, 0)),
                    file.read_bytes(),
                    zipfile.ZIP_DEFLATED,
                )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        {"stores": make_stores, "runs": make_runs}[sys.argv[1]](Path(made))
        pack(Path(made), Path(sys.argv[2]))
