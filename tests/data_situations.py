"""Data as people have them: what lies there, the exit code of `layerbank probe` on them, and a phrase of what it says."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

Situation = tuple[str, str, Callable[[Path], object], int, str]


def picture(seed: int, format: str = "png", size: tuple[int, int] = (40, 40), mode: str = "RGB") -> bytes:
    """An encoded image of noise."""
    shape = (*size, len(Image.new(mode, (1, 1)).getbands()))
    pixels = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if shape[-1] == 1 else pixels, mode).save(content, format)
    return content.getvalue()


def tree(files: Mapping[str, bytes]) -> Callable[[Path], None]:
    """Write files into a folder."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return write


def tar(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as file:  # type: ignore[call-overload]
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            file.addfile(member, io.BytesIO(text))
    return content.getvalue()


def hdf5(**datasets: object) -> Callable[[Path], None]:
    """The same datasets in train.h5 and test.h5."""

    def write(folder: Path) -> None:
        for split in ("train", "test"):
            with h5py.File(folder / f"{split}.h5", "w") as file:
                for name, values in datasets.items():
                    file[name] = values

    return write


def photos(per_class: int = 4) -> dict[str, bytes]:
    """Two classes in two splits."""
    names = [
        f"data/{split}/{name}/{number}.png"
        for split in ("train", "test")
        for name in ("cat", "dog")
        for number in range(per_class)
    ]
    return {name: picture(seed) for seed, name in enumerate(names)}


def samples(num: int, first: int = 0) -> dict[str, bytes]:
    """Members of a tar: an image and its class each."""
    members = {}
    for number in range(first, first + num):
        members |= {f"{number:03}.png": picture(number), f"{number:03}.cls": str(number % 2).encode()}
    return members


def shards(train: bytes, test: bytes | None = None, **more: bytes) -> Callable[[Path], None]:
    good = tar(samples(8, 100))
    return tree({"data/train/0.tar": train, "data/test/0.tar": good if test is None else test, **more})


GOOD = photos()
TRAIN = {name: content for name, content in GOOD.items() if "/train/" in name}
TEST = {name: content for name, content in GOOD.items() if "/test/" in name}
PNG = picture(1)
PIXELS = np.random.default_rng(0).integers(0, 255, (8, 20, 20, 3), dtype=np.uint8)
LABELS = np.arange(8) % 2
FLIPPED = PNG[:500] + bytes([PNG[500] ^ 255]) + PNG[501:]
FORMATS = {f"data/train/cat/a.{one}": picture(9, one) for one in ("jpeg", "bmp", "webp", "tiff")}
OWLS = {f"data/train/owl/{seed}.png": picture(seed) for seed in (1, 2)}
FIRST = TRAIN["data/train/cat/0.png"]
TEXTS = dict.fromkeys(("data/train/cat/a.txt", "data/test/cat/a.txt"), b"")
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
DONE, BAD = "balanced accuracy", "an image that decodes"
F, W, H = "folder:data", "wds:data", "hdf5:{split}.h5"
C, N = "csv:table.csv", "npz:images.npz"


def cat(name: str, content: bytes) -> Callable[[Path], None]:
    """One more image of cats to train on."""
    return tree(GOOD | {f"data/train/cat/{name}": content})


def listed(*more: str, head: str = "image,label,split", **files: bytes) -> Callable[[Path], None]:
    """The images of two classes as rows of a table, and further rows."""
    rows = [f"{name},{name.split('/')[2]},{name.split('/')[1]}" for name in GOOD]
    return tree(GOOD | {"table.csv": "\n".join([head, *rows, *more, ""]).encode()} | files)


def npz(**arrays: object) -> Callable[[Path], None]:
    """A file of arrays."""
    return lambda folder: np.savez(folder / "images.npz", **arrays)  # type: ignore[arg-type]


def renamed(old: str, new: str, of: Mapping[str, bytes] = GOOD) -> dict[str, bytes]:
    return {name.replace(old, new): content for name, content in of.items()}


def linked(folder: Path) -> None:
    tree(GOOD)(folder)
    (folder / "data/train/cat/broken.png").symlink_to("nowhere.png")


def folder_in_place_of_an_image(folder: Path) -> None:
    tree(GOOD)(folder)
    (folder / "data/train/cat/folder.png").mkdir()


def cut_hdf5(folder: Path) -> None:
    hdf5(images=PIXELS, labels=LABELS)(folder)
    for split in ("train", "test"):
        content = (folder / f"{split}.h5").read_bytes()
        (folder / f"{split}.h5").write_bytes(content[: len(content) // 2])


TWO_FORMS = renamed("cat", COMPOSED, TRAIN) | renamed("cat", DECOMPOSED, TEST)

SITUATIONS: tuple[Situation, ...] = (
    ("folder: two classes", F, tree(GOOD), 0, DONE),
    ("folder: JPEG, BMP, WebP, TIFF", F, tree(GOOD | FORMATS), 0, DONE),
    ("folder: a byte order mark in a class name", F, tree(renamed("cat", "\ufeffcat")), 0, DONE),
    ("folder: blanks, brackets and emoji in names", F, tree(renamed("cat", "[red] \U0001f431 :cat:")), 0, DONE),
    ("folder: other files beside the images", F, cat("notes.txt", b"x"), 0, ".txt (1)"),
    ("folder: hidden files", F, cat(".DS_Store", b"x"), 0, DONE),
    ("folder: grey images", F, cat("g.png", picture(3, mode="L")), 0, DONE),
    ("folder: transparent images", F, cat("t.png", picture(3, mode="RGBA")), 0, DONE),
    ("folder: one pixel", F, cat("p.png", picture(3, size=(1, 1))), 0, DONE),
    ("folder: the same image in both splits", F, tree(GOOD | {"data/test/cat/c.png": FIRST}), 0, "are also in"),
    ("folder: the same image in two classes", F, tree(GOOD | {"data/train/dog/c.png": FIRST}), 0, "another label"),
    ("folder: a class without test images", F, tree(GOOD | OWLS), 0, "without images in"),
    ("folder: a class with a single image", F, tree(GOOD | {"data/train/owl/1.png": PNG}), 0, "single image"),
    ("folder: an empty class folder", F, tree(GOOD | {"data/train/owl/.keep": b""}), 0, DONE),
    ("folder: results inside the data", F, tree(GOOD | {"data/runs/a/b.png": PNG}), 0, DONE),
    ("folder: images of one colour", F, cat("f.png", picture(0, size=(1, 2))), 0, DONE),
    ("folder: nothing there", F, tree({}), 2, "nothing there"),
    ("folder: a file", F, tree({"data": b"x"}), 2, "a file"),
    ("folder: empty", F, tree({"data/.keep": b""}), 2, "no split"),
    ("folder: no test split", F, tree(TRAIN), 2, "the splits train"),
    ("folder: no training split", F, tree(TEST), 2, "the splits test"),
    ("folder: classes without splits", F, tree({"data/cat/1.png": PNG, "data/dog/1.png": PNG}), 2, "split train"),
    ("folder: images without classes", F, tree(GOOD | {"data/train/1.png": PNG}), 2, "images in class folders"),
    ("folder: splits without images", F, tree(TEXTS), 2, "images in class folders"),
    ("folder: one class", F, tree({name: one for name, one in GOOD.items() if "/cat/" in name}), 2, "at least two classes"),
    ("folder: a test class without training images", F, tree(GOOD | {"data/test/owl/1.png": PNG}), 2, "classes that"),
    ("folder: classes that differ in case", F, tree(TRAIN | renamed("cat", "Cat", TEST)), 2, "differ in case"),
    ("folder: classes of two Unicode forms", F, tree(TWO_FORMS), 2, "Unicode form"),
    ("folder: an empty image", F, cat("e.png", b""), 1, BAD),
    ("folder: a text named as an image", F, cat("e.png", b"hello"), 1, BAD),
    ("folder: a cut PNG", F, cat("e.png", PNG[:-200]), 1, BAD),
    ("folder: a cut JPEG", F, cat("e.jpg", picture(1, "jpeg")[:500]), 1, BAD),
    ("folder: a PNG with a zero-filled tail", F, cat("e.png", PNG[:-300] + bytes(300)), 1, BAD),
    ("folder: a PNG with a flipped byte", F, cat("e.png", FLIPPED), 1, BAD),
    ("folder: a link to nothing", F, linked, 1, BAD),
    ("folder: a folder named as an image", F, folder_in_place_of_an_image, 0, DONE),
    ("folder: test images that cannot be read", F, tree(TRAIN | dict.fromkeys(TEST, b"x")), 1, BAD),
    ("images: without labels", "images:data", tree(GOOD), 2, "images with labels"),
    ("wds: two classes", W, shards(tar(samples(8))), 0, DONE),
    ("wds: a byte order mark", W, shards(tar(samples(8)), **{"data/classnames.txt": b"\xef\xbb\xbfcat\ndog\n"}), 0, DONE),
    ("wds: class names in Latin-1", W, shards(tar(samples(8)), **{"data/classnames.txt": b"caf\xe9\ndog\n"}), 2, "text in UTF-8"),
    ("wds: too few class names", W, shards(tar(samples(8)), **{"data/classnames.txt": b"cat\n"}), 2, "the number of one"),
    ("wds: class names twice", W, shards(tar(samples(8)), **{"data/classnames.txt": b"cat\ncat\n"}), 0, DONE),
    ("wds: no shards", W, tree({"data/train/x": b"", "data/test/x": b""}), 2, "no split"),
    ("wds: an empty file", W, shards(b""), 2, "uncompressed tar"),
    ("wds: a text", W, shards(b"hello" * 200), 2, "the file is not a tar"),
    ("wds: compressed", W, shards(tar(samples(8), "w:gz")), 2, "an uncompressed tar"),
    ("wds: cut in a member", W, shards(tar(samples(8))[:3000]), 2, "uncompressed tar"),
    ("wds: cut between members", W, shards(tar(samples(8))[:-10240]), 2, "uncompressed tar"),
    ("wds: a flipped byte in a header", W, shards(b"\x01" + tar(samples(8))[1:]), 2, "uncompressed tar"),
    ("wds: an empty tar", W, shards(tar({})), 2, "tars without samples"),
    ("wds: images without classes", W, shards(tar({"1.png": PNG})), 2, "a class (cls)"),
    ("wds: classes without images", W, shards(tar({"1.cls": b"1"})), 2, "an image"),
    ("wds: a class that is a name", W, shards(tar(samples(8) | {"000.cls": b"cat"})), 2, "labels of one type"),
    ("wds: a negative class", W, shards(tar(samples(8) | {"000.cls": b"-1"})), 2, "classes from 0"),
    ("wds: a class of 5,000 digits", W, shards(tar(samples(8) | {"000.cls": b"9" * 5000})), 2, "a whole number, a text"),
    ("wds: a missing shard", W, shards(tar(samples(8)), **{"data/train/nshards.txt": b"3"}), 2, "2 missing"),
    ("wds: a count that is no number", W, shards(tar(samples(8)), **{"data/train/nshards.txt": b"many"}), 2, "number of shards"),
    ("wds: a damaged image", W, shards(tar(samples(8) | {"000.png": b"hello"})), 1, BAD),
    ("hdf5: two classes", H, hdf5(images=PIXELS, labels=LABELS), 0, DONE),
    ("hdf5: nothing there", H, tree({}), 2, "no split at all"),
    ("hdf5: a text", H, tree({"train.h5": b"hello", "test.h5": b"hello"}), 2, "a file that HDF5 cannot open"),
    ("hdf5: cut in half", H, cut_hdf5, 2, "a file that HDF5 cannot open"),
    ("hdf5: other names", H, hdf5(a=PIXELS, b=LABELS), 2, "a dataset called"),
    ("hdf5: no labels", H, hdf5(images=PIXELS), 2, "a dataset called"),
    ("hdf5: pixels as floats", H, hdf5(images=PIXELS / 255, labels=LABELS), 2, "uint8 pixels"),
    ("hdf5: fewer labels than images", H, hdf5(images=PIXELS, labels=LABELS[:5]), 2, "one for each image"),
    ("hdf5: labels as floats", H, hdf5(images=PIXELS, labels=LABELS / 2), 0, "r2"),
    ("hdf5: negative labels", H, hdf5(images=PIXELS, labels=LABELS - 1), 2, "class indices from 0"),
    ("csv: a table of paths, labels and splits", C, listed(), 0, DONE),
    ("csv: a byte order mark", C, listed(head="\ufeffimage,label,split"), 0, DONE),
    ("csv: another separator", C, tree({"table.csv": b"image;label;split\na.png;cat;train\n"}), 2, "a file for each path"),
    ("csv: an image that is not there", C, listed("data/none.png,cat,train"), 2, "data/none.png"),
    ("csv: an image twice", C, listed("data/train/cat/0.png,dog,train"), 2, "data/train/cat/0.png"),
    ("csv: a row without a label", C, listed("data/train/cat/0.png,,train"), 2, "label"),
    ("csv: a row of too many cells", C, listed("data/train/cat/0.png,cat,train,more"), 2, "cells"),
    ("csv: no column of labels", C, listed(head="image,what,split"), 2, "images without labels"),
    ("csv: a column that is misspelled", C + "?label=labell", listed(), 2, "Did you mean 'label'?"),
    ("csv: a fraction and a column of splits", C + "?split=split&seed=1", listed(), 2, "seed"),
    ("csv: a group in two splits", C + "?group=label", listed(), 2, "groups"),
    ("csv: an empty file", C, tree({"table.csv": b""}), 2, "table.csv"),
    ("npz: images and labels, a fraction held out", N + "?split=0.5", npz(images=PIXELS, labels=LABELS), 0, DONE),
    ("npz: fewer labels than images", N + "?split=0.5", npz(images=PIXELS, labels=LABELS[1:]), 2, "labels"),
    ("npz: no images", N, npz(labels=LABELS), 2, "images"),
    ("npz: no archive", N, tree({"images.npz": b"no archive"}), 2, "images.npz"),
)  # fmt: skip
