"""Data that lead elsewhere are not followed: links, pipes, devices, HDF5 datasets in other files; they are named and counted."""

from __future__ import annotations

import ast
import io
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
from commands import MODEL, run
from messages import raises, refuses
from PIL import Image
from token_stores import make_arrays, write_images

from layerbank.cache import export_hdf5, import_hdf5
from layerbank.cache.maintenance.hdf5_inside import place_outside
from layerbank.data.folder import EXTENSIONS
from layerbank.data.image_set import identify
from layerbank.data.in_memory import MemorySource
from layerbank.data.sources import SOURCES, BadImage, open_source

ROOT = Path(__file__).parent.parent
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")


def encoded(form: str = "PNG", row: int = 0) -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(content, form)
    return content.getvalue()


def write_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.png", encoded()), ("a.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_image(path: Path) -> Path:
    path.write_bytes(encoded(row=2))
    return path


def write_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = PIXELS, np.arange(4) % 2
    return path


def folder_data(root: Path) -> str:
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "a.png").write_bytes(encoded(row=int(name == "dog")))
    return f"folder:{root}"


def images_data(root: Path) -> str:
    (root / "train" / "cat").mkdir(parents=True)
    (root / "train" / "cat" / "a.png").write_bytes(encoded())
    return f"images:{root}"


def wds_data(root: Path) -> str:
    (root / "train").mkdir(parents=True)
    write_tar(root / "train" / "0.tar")
    return f"wds:{root}"


def hdf5_data(root: Path) -> str:
    root.mkdir()
    write_hdf5(root / "train.h5")
    return f"hdf5:{root}/{{split}}.h5"


# how a data set in files is written, and a name below it for another file of its kind; None for data in no files
DATA: dict[str, tuple[Callable[[Path], str], str, Callable[[Path], Path]] | None] = {
    "folder": (folder_data, "train/cat/x.png", write_image),
    "images": (images_data, "train/cat/x.png", write_image),
    "wds": (wds_data, "train/1.tar", write_tar),
    "hdf5": (hdf5_data, "train.h5", write_hdf5),
    # files that the user names, alone or in a table, may lie anywhere, and the hub's cache is made of links; pipes are refused
    **dict.fromkeys(("csv", "parquet", "hf", "npz", "torchvision")),
    "demo": None,
}
IN_FILES = {name: data for name, data in DATA.items() if data is not None}


def test_every_source_is_tested_here() -> None:
    assert sorted(DATA) == sorted(SOURCES.builtin)


def a_link_out(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def a_pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path, outside: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize("kind", [a_link_out, a_pipe, a_device, a_socket])
@pytest.mark.parametrize("scheme", IN_FILES)
def test_what_is_no_file_of_the_data_is_named_and_not_read(
    scheme: str, kind: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    write, name, write_file = IN_FILES[scheme]
    uri = write(tmp_path / "data")
    path = tmp_path / "data" / name
    path.unlink(missing_ok=True)
    kind(path, write_file(tmp_path / f"outside{path.suffix}"))
    if scheme == "hdf5":  # its address names the file itself: a link is what the user chose
        if kind is a_link_out:
            assert len(open_source(uri, "train")) == 4
        else:
            with raises("data.not_hdf5"):
                open_source(uri, "train")
        return
    if scheme == "wds":
        with raises("data.not_followed", count=1):
            open_source(uri, "train")
        return
    source = open_source(uri, "train")
    row = source.ids.index(name)
    with raises("data.bad_image", BadImage, id=name):
        source.load(row)
    images = identify(source, tmp_path / "cache")
    assert images.hashes[row] == 0
    assert (np.delete(images.hashes, row) != 0).all()
    assert np.array_equal(identify(source, tmp_path / "cache").hashes, images.hashes)


@pytest.mark.parametrize("name", ["test", "train/emu", "train/cat/more"])
@pytest.mark.parametrize("scheme", ["folder", "images"])
def test_a_folder_that_leads_out_is_named_whichever_it_is(scheme: str, name: str, tmp_path: Path) -> None:
    uri = IN_FILES[scheme][0](tmp_path / "data")
    (tmp_path / "outside" / "emu").mkdir(parents=True)
    (tmp_path / "outside" / "emu" / "a.png").write_bytes(encoded(row=3))
    (tmp_path / "data" / name).symlink_to(tmp_path / "outside")
    with raises("data.not_followed", count=1) as refused:
        open_source(uri, name.partition("/")[0] if scheme == "folder" else "train")  # no other split is looked at
    assert name in refused.error.got


def test_links_inside_the_data_and_a_link_to_the_data_are_followed(tmp_path: Path) -> None:
    folder_data(tmp_path / "data")
    (tmp_path / "data/train/cat/b.png").symlink_to("../dog/a.png")
    (tmp_path / "data/test").symlink_to("train")
    (tmp_path / "link").symlink_to("data")
    for split, count in (("train", 3), ("test", 3)):
        source = open_source(f"folder:{tmp_path}/link", split)
        assert len(source) == count
        assert [source.load(row) for row in range(count)]


def test_extract_names_a_pipe_and_goes_on_where_it_may(photos: Path, tmp_path: Path) -> None:
    uri = folder_data(tmp_path / "data")
    os.mkfifo(tmp_path / "data/train/cat/x.png")
    command = ["extract", *MODEL, "--data", uri, "--split", "train", "--levels", "last", "--cache", tmp_path / "caches"]
    refuses(run(*command), "data.bad_image", 1, id="train/cat/x.png", reason="a pipe")
    done = run(*command, "--on-bad-image", "skip")
    assert done.exit_code == 0, done.output
    assert "train/cat/x.png" in done.stderr


def test_class_names_of_tars_are_not_read_from_elsewhere(tmp_path: Path) -> None:
    uri = wds_data(tmp_path / "data")
    (tmp_path / "secret").write_text("a\nb")
    (tmp_path / "data/classnames.txt").symlink_to(tmp_path / "secret")
    with raises("data.not_followed") as refused:
        open_source(uri, "train")
    assert "classnames.txt" in refused.error.got


def test_a_path_from_python_that_is_a_pipe_is_a_bad_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    source = MemorySource([tmp_path / "x.png"], None, name="x", split="x", ids=None, class_names=None, pairs=False)
    with raises("data.bad_image", BadImage):
        source.load(0)


# ---- HDF5


def external_link(file: h5py.File, other: Path) -> None:
    file["images"] = h5py.ExternalLink(str(other), "images")


def soft_link_to_external_link(file: h5py.File, other: Path) -> None:
    file["group"] = h5py.ExternalLink(str(other), "/")
    file["images"] = h5py.SoftLink("/group/images")


def group_in_another_file(file: h5py.File, other: Path) -> None:
    file["g"] = h5py.ExternalLink(str(other), "/")
    file["deep/images"] = h5py.SoftLink("../g/images")
    file["images"] = h5py.SoftLink("/g/images")


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("images", shape=PIXELS.shape, dtype="u1", external=[(str(other), 0, PIXELS.nbytes)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(PIXELS.shape, dtype="u1")
    layout[:] = h5py.VirtualSource(str(other), "images", PIXELS.shape)
    file.create_virtual_dataset("images", layout)


def virtual_of_virtual(file: h5py.File, other: Path) -> None:
    virtual(file, other)
    file.move("images", "inner")
    layout = h5py.VirtualLayout(PIXELS.shape, dtype="u1")
    layout[:] = h5py.VirtualSource(".", "inner", PIXELS.shape)
    file.create_virtual_dataset("images", layout)


LEADING_OUT = [
    external_link,
    soft_link_to_external_link,
    group_in_another_file,
    external_storage,
    virtual,
    virtual_of_virtual,
]


@pytest.mark.parametrize("is_pipe", [False, True])
@pytest.mark.parametrize("lead_out", LEADING_OUT)
def test_an_hdf5_dataset_in_another_file_is_refused_before_that_is_opened(
    lead_out: Callable[[h5py.File, Path], None], is_pipe: bool, tmp_path: Path
) -> None:
    other = write_hdf5(tmp_path / "other.h5")
    with h5py.File(tmp_path / "train.h5", "w") as file:
        lead_out(file, other)
        file["labels"] = np.arange(4) % 2
    if is_pipe:  # opening it would wait without end
        other.unlink()
        os.mkfifo(other)
    with raises("data.hdf5_outside") as refused:
        open_source(f"hdf5:{tmp_path}/{{split}}.h5", "train")
    assert "other.h5" in refused.error.got
    write_hdf5(tmp_path / "pixels_train.h5")
    with raises("data.hdf5_outside"):
        open_source(f"hdf5:{tmp_path}/pixels_{{split}}.h5?labels={{split}}.h5::images", "train")


def test_links_and_virtual_datasets_inside_an_hdf5_file_are_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["deep/pixels"] = PIXELS
        layout = h5py.VirtualLayout(PIXELS.shape, dtype="u1")
        layout[:] = h5py.VirtualSource(".", "deep/pixels", PIXELS.shape)
        file.create_virtual_dataset("deep/virtual", layout)
        file["images"] = h5py.SoftLink("/deep/virtual")
        file["labels"] = np.arange(4) % 2
    source = open_source(f"hdf5:{tmp_path}/{{split}}.h5", "train")
    assert np.array_equal(np.asarray(source.load(2)[0]), PIXELS[2])


def test_circles_in_an_hdf5_file_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        for name, other in (("c", "d"), ("d", "c")):
            layout = h5py.VirtualLayout((2,), dtype="u1")
            layout[:] = h5py.VirtualSource(".", other, (2,))
            file.create_virtual_dataset(name, layout)
        assert place_outside(file, "a") == place_outside(file, "nothing") == ""
        assert "circle" in place_outside(file, "c")


def test_no_import_brings_in_data_of_other_files(tmp_path: Path) -> None:
    store = write_images(tmp_path, 20, make_arrays(kinds=("cls",)))
    export_hdf5(store, tmp_path / "store.h5")
    with h5py.File(tmp_path / "store.h5") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    assert len(names) >= 4
    for number, name in enumerate(names):
        copy = tmp_path / f"{number}.h5"
        copy.write_bytes((tmp_path / "store.h5").read_bytes())
        with h5py.File(copy, "r+") as file:
            del file[name]
            file[name] = h5py.ExternalLink(str(tmp_path / "store.h5"), name)
        with raises("cache.hdf5_outside", name=name):
            import_hdf5(copy, tmp_path / f"{number}.zarr")
        assert not (tmp_path / f"{number}.zarr").exists()


# ---- formats of images


@pytest.mark.parametrize(
    "form", ["EPS", "GIF", "PDF", "ICO", "TGA", "PCX", "SGI", "PPM", "WEBP", "TIFF", "BMP", "JPEG"]
)
@pytest.mark.parametrize("scheme", ["folder", "images"])
def test_only_the_documented_formats_are_opened_whatever_the_name(scheme: str, form: str, tmp_path: Path) -> None:
    uri = IN_FILES[scheme][0](tmp_path / "data")
    (tmp_path / "data/train/cat/a.png").write_bytes(encoded(form))
    source = open_source(uri, "train")
    if form in ("PPM", "WEBP", "TIFF", "BMP", "JPEG"):
        assert source.load(0)[0].size == (8, 8)
    else:
        reason = "bytes in none of the formats JPEG, PNG, PPM, BMP, TIFF, WEBP"
        with raises("data.bad_image", BadImage, reason=reason):
            source.load(0)


def test_pillow_opens_nothing_without_a_list_of_formats() -> None:
    calls = []
    for folder in ("pipeline", "cache", "probes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                    calls.append((path, any(one.arg == "formats" for one in node.keywords)))
    assert len(calls) >= 2
    assert [path for path, has_formats in calls if not has_formats] == []


def test_every_extension_has_one_of_the_formats(tmp_path: Path) -> None:
    for extension in EXTENSIONS:
        Image.fromarray(PIXELS[0]).save(tmp_path / f"a{extension}")
    source = open_source(f"images:{tmp_path}", "all")
    assert len([source.load(row) for row in range(len(source))]) == len(EXTENSIONS)
