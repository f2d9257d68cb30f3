"""The same images through every kind of source give the same token bytes, labels and class names."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photos import TINY_MODEL, write_photos
from PIL import Image

import layerbank as lb

pa = pytest.importorskip("pyarrow")


def write_csv(photos: Path, to: Path, paths: list[Path]) -> str:
    lines = [f"{path},{path.parent.name}" for path in paths]
    (to / "a.csv").write_text("\n".join(["path,label", *lines]))
    return f"csv:{to}/a.csv"


def parquet_table(paths: list[Path]) -> pa.Table:
    images = [{"bytes": path.read_bytes(), "path": str(path)} for path in paths]
    return pa.table({"image": images, "label": [path.parent.name for path in paths]})


def write_parquet(photos: Path, to: Path, paths: list[Path]) -> str:
    from pyarrow import parquet

    parquet.write_table(parquet_table(paths), to / "a.parquet", row_group_size=5)
    return f"parquet:{to}/a.parquet"


def write_hf(photos: Path, to: Path, paths: list[Path]) -> str:
    table = parquet_table(paths)
    with pa.OSFile(str(to / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (to / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return f"hf:{to}"


def write_wds(photos: Path, to: Path, paths: list[Path]) -> str:
    (to / "all").mkdir()
    with tarfile.open(to / "all" / "0.tar", "w") as tar:
        for number, path in enumerate(paths):
            for extension, content in (("png", path.read_bytes()), ("cls", path.parent.name.encode())):
                info = tarfile.TarInfo(f"{number:03}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return f"wds:{to}"


def write_npz(photos: Path, to: Path, paths: list[Path]) -> str:
    np.savez(
        to / "a.npz",
        images=np.stack([np.asarray(Image.open(path)) for path in paths]),
        labels=np.array([path.parent.name for path in paths]),
    )
    return f"npz:{to}/a.npz"


SOURCES: list[Callable[[Path, Path, list[Path]], str]] = [write_csv, write_parquet, write_hf, write_wds, write_npz]


def test_every_kind_of_source_gives_the_tokens_of_the_folder(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"all": 9})
    paths = sorted(photos.rglob("*.png"))
    model = lb.open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")

    def tokens_of(uri: str, name: str) -> lb.Tokens:
        images = lb.open_images(uri, "all")  # a cache for each, so that each computes its tokens
        return lb.extract(model, images, kinds=["cls", "patch"], cache=tmp_path / f"cache-{name}", progress=False)

    wanted = tokens_of(f"folder:{photos}", "folder")
    assert len(wanted) == 27
    for write in SOURCES:
        to = tmp_path / write.__name__
        to.mkdir()
        found = tokens_of(write(photos, to, paths), write.__name__)
        assert found.labels.tolist() == wanted.labels.tolist()
        assert found.class_names == wanted.class_names == ["blue", "green", "red"]
        assert found.arrays == wanted.arrays
        for array in wanted.arrays:
            assert found[array][:].tobytes() == wanted[array][:].tobytes(), (write.__name__, array)


def test_encoded_images_are_known_in_every_kind_of_source(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"all": 2})
    model = lb.open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")
    cache, stores = tmp_path / "cache", set()
    for write in (None, write_csv, write_parquet, write_hf, write_wds):
        to = tmp_path / ("folder" if write is None else write.__name__)
        to.mkdir()
        uri = f"folder:{photos}" if write is None else write(photos, to, sorted(photos.rglob("*.png")))
        tokens = lb.extract(model, lb.open_images(uri, "all"), levels="last", cache=cache, progress=False)
        stores.update(tokens.stores)
    assert len(stores) == 1
