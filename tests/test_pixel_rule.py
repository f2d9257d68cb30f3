"""Options that decide pixels: they have an effect on the images that they concern, whose rows are others, and on no other image."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import MODEL, run
from messages import raises, refuses
from photos import write_photos
from PIL import Image, ImageOps

import layerbank as lb
from layerbank import RequestError
from layerbank.cache import StoreFiles
from layerbank.data import decoding, image_set
from layerbank.data.decoding import changes_of, decode_rgb, is_flat
from layerbank.data.image_set import identify
from layerbank.data.image_source import BadImage, row_hash
from layerbank.data.pixels import DROP, LEGACY, USUAL, PixelRule, recorded_rule
from layerbank.data.sources import open_source
from layerbank.extraction.repair import repair_and_fill

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)
TWELVE_BITS = RANDOM.integers(0, 4096, (20, 24), dtype=np.uint16)
SMALL = PixelRule(max_pixels=20)
LARGE = PixelRule(max_pixels=10**9)
ORIENTED = PixelRule(exif_orientation=True)
BLACK, NO_ALPHA, RANGED = PixelRule(background="black"), PixelRule(background=DROP), PixelRule(range=(0, 4095))


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def rgba(alpha: int) -> Image.Image:
    """Noise whose right half has this alpha."""
    image = Image.fromarray(RGB).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.array([[255] * 12 + [alpha] * 12], np.uint8), 20, 0)))
    return image


def oriented(value: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(RGB, kind, exif=exif.tobytes())


def pixels(stored: bytes, rule: PixelRule) -> np.ndarray:
    return np.asarray(decode_rgb(stored, rule)[0])


def palette(alpha: int) -> bytes:
    return encoded(rgba(255).convert("RGB").quantize(4), transparency=bytes([255, 255, 255, alpha]))


TRANSPARENT = {
    "PNG": encoded(rgba(0)),
    "half": encoded(rgba(128)),
    "WebP": encoded(rgba(0), "WEBP", lossless=True, exact=True),
    "TIFF": encoded(rgba(0), "TIFF"),
    "grey": encoded(rgba(0).convert("LA")),
    "palette": palette(0),
    "colour of a PNG": encoded(RGB, transparency=tuple(RGB[3, 4].tolist())),
    "grey of a PNG": encoded(RGB[..., 0], transparency=int(RGB[3, 4, 0])),
}
OPAQUE = {
    "PNG": encoded(RGB),
    "with alpha": encoded(rgba(255)),
    "WebP": encoded(rgba(255), "WEBP"),
    "palette": encoded(Image.fromarray(RGB).quantize(16)),
    "opaque palette": palette(255),
    "JPEG": encoded(RGB, "JPEG"),
    "TIFF": encoded(RGB, "TIFF"),
    "BMP": encoded(RGB, "BMP"),
    "16 bits": encoded(TWELVE_BITS),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_show_the_background_and_drop_shows_the_colours_below(kind: str) -> None:
    stored = TRANSPARENT[kind]
    white, black, dropped = (pixels(stored, rule) for rule in (USUAL, BLACK, NO_ALPHA))
    differs = (white != black).any(-1)
    assert differs.any()
    assert (white[differs] > black[differs]).any()
    if kind != "half":
        assert (white[differs] == 255).all()
        assert (black[differs] == 0).all()
    assert np.array_equal(white[~differs], dropped[~differs])
    assert np.array_equal(dropped, np.asarray(Image.open(io.BytesIO(stored)).convert("RGBA").convert("RGB")))
    hashes = [row_hash(stored, changes_of(stored, rule)) for rule in (USUAL, BLACK, NO_ALPHA, LEGACY)]
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3] == row_hash(stored)


@pytest.mark.parametrize("kind", OPAQUE)
@pytest.mark.parametrize("rule", [USUAL, BLACK, NO_ALPHA, ORIENTED, PixelRule(max_pixels=10**9)])
def test_an_opaque_upright_image_has_one_row_under_every_rule(kind: str, rule: PixelRule) -> None:
    stored = OPAQUE[kind]
    image, changes = decode_rgb(stored, rule)
    assert changes == changes_of(stored, rule) == ""
    assert row_hash(stored, changes) == row_hash(stored)
    assert np.array_equal(np.asarray(image), pixels(stored, LEGACY))


@pytest.mark.parametrize("rule", [USUAL, BLACK, NO_ALPHA, ORIENTED, RANGED, SMALL, LARGE])
def test_what_decoding_says_of_an_image_is_what_hashing_says(rule: PixelRule) -> None:
    deep = [encoded(TWELVE_BITS, kind) for kind in ("PNG", "TIFF", "PPM")]
    for stored in (*TRANSPARENT.values(), *OPAQUE.values(), oriented(6), *deep):
        try:
            _, changes = decode_rgb(stored, rule)
        except ValueError:
            continue
        assert changes == changes_of(stored, rule) == changes_of(memoryview(stored), rule)


def test_damaged_bytes_keep_the_hash_of_their_bytes() -> None:
    whole = TRANSPARENT["PNG"]
    for damaged in (b"", b"no image", whole[:-20], whole[:40], b"\x89PNG\r\n\x1a\n"):
        assert changes_of(damaged, BLACK) == ""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_declared_range_gives_the_levels_of_deep_images(kind: str) -> None:
    stored = encoded(TWELVE_BITS, kind)
    expected = np.round(TWELVE_BITS / 4095 * 255).astype(np.uint8)
    assert is_flat(decode_rgb(stored, USUAL)[0])
    assert np.array_equal(pixels(stored, RANGED)[..., 0], expected)
    assert changes_of(stored, USUAL) == ""  # 0 to 65,535, as ever
    assert len({changes_of(stored, rule) for rule in (USUAL, RANGED, PixelRule(range=(0, 1000)))}) == 3


def test_values_of_a_pgm_file_are_those_that_it_has_and_not_what_pillow_scales_them_to() -> None:
    stored = b"P5 24 20 4095\n" + TWELVE_BITS.astype(">u2").tobytes()
    assert np.array_equal(pixels(stored, RANGED)[..., 0], np.round(TWELVE_BITS / 4095 * 255))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_of_32_bits_need_a_range(dtype: type) -> None:
    values = (TWELVE_BITS.astype(np.float64) - 2000).astype(dtype)
    stored = encoded(values, "TIFF")
    with pytest.raises(ValueError, match=r"\?range=LOW,HIGH"):
        decode_rgb(stored, USUAL)
    rule = PixelRule(range=(-2000, 2095))
    assert np.array_equal(pixels(stored, rule)[..., 0], np.round((values + 2000.0) / 4095 * 255))
    # before, it was cut at 255: those tokens are no answer
    assert row_hash(stored, changes_of(stored, USUAL)) != row_hash(stored)


def test_values_that_are_no_numbers_are_bad_images() -> None:
    values = TWELVE_BITS.astype(np.float32)
    values[3, 4] = np.nan
    with pytest.raises(ValueError, match="no finite number"):
        decode_rgb(encoded(values, "TIFF"), RANGED)


@pytest.mark.parametrize("rule", [RANGED, replace(RANGED, exif_orientation=True), replace(RANGED, background=DROP)])
@pytest.mark.parametrize("num_bands", [3, 4, 2, 0], ids=["RGB", "RGBA", "LA", "PPM"])
def test_deep_colours_with_a_range_are_bad_images(rule: PixelRule, num_bands: int) -> None:
    """Whatever reads the pixels before: EXIF data stand after those of a PNG file."""
    deep = (
        deep_colours(num_bands)
        if num_bands
        else b"P6 24 20 4095\n" + np.dstack([TWELVE_BITS] * 3).astype(">u2").tobytes()
    )
    assert decode_rgb(deep, USUAL)[0].size == (24, 20)
    with pytest.raises(ValueError, match="colours of 16 bits"):
        decode_rgb(deep, rule)
    assert "range" in changes_of(deep, rule)
    assert "range" not in changes_of(deep, USUAL)


def test_a_png_file_is_known_by_its_chunks_and_not_by_letters_in_a_comment() -> None:
    stored, comment = palette(0), b"tEXtComment\0IDAT"
    chunk = struct.pack(">I", len(comment) - 4) + comment + struct.pack(">I", zlib.crc32(comment))
    commented = stored[:33] + chunk + stored[33:]
    for rule in (USUAL, BLACK, NO_ALPHA):
        assert changes_of(commented, rule) == decode_rgb(commented, rule)[1]
    assert changes_of(commented, USUAL)


def test_an_index_from_before_there_were_rules_knows_no_image(tmp_path: Path) -> None:
    """A float image was cut at 255 then, and is a bad image under every rule without a range."""
    photos = write_photos(tmp_path / "photos", {"train": 2})
    (photos / "train" / "red" / "000.png").unlink()
    (photos / "train" / "red" / "000.tif").write_bytes(encoded(TWELVE_BITS.astype(np.float32), "TIFF"))
    time.sleep(2.1)  # younger files are not recorded
    source = open_source(f"folder:{photos}", "train", pixels=LEGACY)
    scopes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_set, "write_index", lambda paths, index, scope: scopes.append(scope))
        hashes = identify(source, tmp_path / "cache").hashes
    assert [scope.count("\n") for scope in scopes] == [2]
    assert row_hash(source.read(source.ids.index("train/red/000.tif"))) not in hashes.tolist()


def deep_colours(num_bands: int) -> bytes:
    """A PNG file with bands of 16 bits, which Pillow reads and does not write."""
    rows = RANDOM.integers(0, 2**16, (20, 24, num_bands)).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    kind = {2: 4, 3: 2, 4: 6}[num_bands]
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 24, 20, 16, kind, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    framed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_images_only_if_it_is_asked_for(value: int, kind: str) -> None:
    stored = oriented(value, kind)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stored))).convert("RGB")
    assert np.array_equal(pixels(stored, ORIENTED), np.asarray(expected))
    assert np.array_equal(pixels(stored, USUAL), np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")))
    assert bool(changes_of(stored, ORIENTED)) == (value > 1)
    assert changes_of(stored, USUAL) == ""


def test_tiff_files_are_turned_once_whatever_the_option() -> None:
    stored = encoded(RGB, "TIFF", tiffinfo={0x0112: 6})
    assert np.array_equal(pixels(stored, USUAL), np.rot90(RGB, -1))
    assert np.array_equal(pixels(stored, ORIENTED), pixels(stored, USUAL))
    assert changes_of(stored, ORIENTED) == ""


def test_an_image_above_the_limit_is_bad_and_has_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = OPAQUE["JPEG"]
    with pytest.raises(ValueError, match="24 x 20 pixels: more than 20"):
        decode_rgb(stored, SMALL)
    refused = changes_of(stored, SMALL)
    assert refused
    assert refused == changes_of(stored, PixelRule(max_pixels=30)) == changes_of(RGB, SMALL)
    assert changes_of(stored, LARGE) == changes_of(RGB, LARGE) == ""
    monkeypatch.setattr(decoding, "MOST_PIXELS", 300)  # as if the image were larger than the usual limit
    assert changes_of(stored, LARGE) not in ("", refused)


def test_pillows_own_limit_stays_as_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_rgb(OPAQUE["PNG"], USUAL)[0].size == (24, 20)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("background", ["green", "#12345", "#12345g", "Drop it"])
def test_another_background_is_refused(background: str) -> None:
    with raises("data.bad_background", RequestError):
        PixelRule(background=background)
    refuses(run("extract", *MODEL, "--data", "folder:nowhere", "--background", background), "data.bad_background")


def test_rules_come_back_from_json() -> None:
    rule = PixelRule(background="#12AB34", range=(-1.5, 2), exif_orientation=True, max_pixels=7)
    assert recorded_rule({"pixels": json.loads(json.dumps(rule.to_dict()))}) == rule
    assert recorded_rule({}) == LEGACY
    for damaged in ({"background": 3}, {"range": [1]}, {"range": "ab"}, [1], {"colour": "white"}):
        with pytest.raises(TypeError):
            recorded_rule({"pixels": damaged})


# ---- sources


def deep_sources(root: Path) -> dict[str, str]:
    """The same two 12-bit images in every kind of source that can hold them."""
    import pyarrow
    from pyarrow import parquet

    images = [TWELVE_BITS, TWELVE_BITS[::-1].copy()]
    files = [encoded(image) for image in images]
    for number, content in enumerate(files):
        path = root / "folder" / "all" / "ab"[number] / f"{number}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    (root / "t.csv").write_text("path,label\nfolder/all/a/0.png,a\nfolder/all/b/1.png,b\n")
    table = pyarrow.table({"image": files, "label": ["a", "b"]})
    parquet.write_table(table, root / "t.parquet")
    (root / "hf").mkdir()
    parquet.write_table(table, root / "hf" / "all.parquet")
    (root / "wds" / "all").mkdir(parents=True)
    with tarfile.open(root / "wds" / "all" / "0.tar", "w") as tar:
        for number, content in enumerate(files):
            for extension, data in (("png", content), ("cls", b"%d" % number)):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    np.savez(root / "t.npz", images=np.stack(images), labels=[0, 1])
    with h5py.File(root / "all.h5", "w") as file:
        file["images"], file["labels"] = np.stack(images), [0, 1]
    return {
        "folder": f"folder:{root}/folder",
        "images": f"images:{root}/folder",
        "csv": f"csv:{root}/t.csv",
        "parquet": f"parquet:{root}/t.parquet",
        "hf": f"hf:{root}/hf",
        "wds": f"wds:{root}/wds",
        "npz": f"npz:{root}/t.npz",
        "hdf5": f"hdf5:{root}/{{split}}.h5",
    }


@pytest.mark.parametrize("kind", ["folder", "images", "csv", "parquet", "hf", "wds", "npz", "hdf5"])
def test_every_source_takes_a_range(kind: str, tmp_path: Path) -> None:
    uri = deep_sources(tmp_path)[kind]
    source = open_source(f"{uri}?range=0,4095", "all")
    expected = np.round(TWELVE_BITS / 4095 * 255)
    assert np.array_equal(np.asarray(source.load(0)[0])[..., 0], expected)
    hashes = identify(source, tmp_path / "cache").hashes
    assert [source.load(row)[1] for row in range(2)] == hashes.tolist()
    other = identify(open_source(f"{uri}?range=0,1000", "all"), tmp_path / "cache").hashes
    assert not set(other.tolist()) & set(hashes.tolist())
    assert identify(open_source(f"{uri}?range=0,4095", "all"), tmp_path / "cache").hashes.tolist() == hashes.tolist()
    with raises("data.bad_range", RequestError):
        open_source(f"{uri}?range=5,1", "all")


def test_arrays_and_pil_images_from_python_take_the_options() -> None:
    expected = np.round(TWELVE_BITS / 4095 * 255)
    for image in (TWELVE_BITS, TWELVE_BITS.astype(np.float32), Image.fromarray(TWELVE_BITS), encoded(TWELVE_BITS)):
        source = lb.images_from([image], value_range=(0, 4095))
        assert np.array_equal(np.asarray(source.load(0)[0])[..., 0], expected)
    white, black = (lb.images_from([rgba(0)], background=one).load(0) for one in ("white", "black"))
    assert white[1] != black[1]
    assert np.asarray(white[0])[0, -1].tolist() == [255] * 3
    with raises("data.bad_range", RequestError):
        lb.images_from([TWELVE_BITS], value_range=(3, 3))
    with pytest.raises(BadImage, match="more than 20"):
        lb.images_from([RGB], max_pixels=20).load(0)


def test_the_index_of_an_earlier_version_answers_for_drop_and_for_no_other_background(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2})
    (photos / "train" / "red" / "clip.png").write_bytes(TRANSPARENT["PNG"])
    uri, cache = f"folder:{photos}", tmp_path / "cache"
    legacy = identify(open_source(uri, "train", pixels=LEGACY), cache)  # scope and hashes of version 0.2
    white, black = (identify(open_source(uri, "train", pixels=rule), cache) for rule in (USUAL, BLACK))
    ids = open_source(uri, "train").ids
    place = ids.index("train/red/clip.png")
    for one in (white, black):
        assert np.flatnonzero(one.hashes != legacy.hashes).tolist() == [place]
    assert white.hashes[place] != black.hashes[place]


# ---- stores


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight opaque photographs, and a drawing on transparent ground."""
    folder = write_photos(tmp_path / "photos", {"train": 4, "test": 2})
    (folder / "train" / "red" / "clip.png").write_bytes(TRANSPARENT["PNG"])
    return folder


def extract(photos: Path, *options: str) -> tuple[int, str]:
    """How many rows were computed, and what was said."""
    root = photos.parent / "cache"
    before = rows_in(root)
    given = [*MODEL, "--data", f"folder:{photos}", "--split", "train", "--levels", "last", "--cache", root]
    result = run("extract", *given, "--on-bad-image", "skip", *options)
    assert result.exit_code == 0, result.output
    return rows_in(root) - before, result.stderr


def rows_in(root: Path) -> int:
    return sum(StoreFiles.read(path).header.spec.num_rows for path in root.glob("*/*.zarr"))


def test_another_background_computes_the_transparent_images_alone_and_the_same_one_nothing(photos: Path) -> None:
    total = len(open_source(f"folder:{photos}", "train"))
    assert extract(photos, "--background", "drop")[0] == total  # as every version before did
    assert extract(photos)[0] == 1
    assert extract(photos, "--background", "#ffffff")[0] == 0
    assert extract(photos, "--background", "black")[0] == 1
    assert [extract(photos, "--background", one)[0] for one in ("white", "black", "drop")] == [0, 0, 0]


def test_orientation_and_limit_compute_the_images_that_they_change(photos: Path) -> None:
    extract(photos)
    (photos / "train" / "red" / "turned.jpg").write_bytes(oriented(6))
    assert extract(photos)[0] == 1
    assert [extract(photos, "--exif-orientation")[0] for _ in range(2)] == [1, 0]
    side = 40  # of every photograph
    wide = Image.fromarray(RANDOM.integers(0, 256, (side, side + 50, 3), dtype=np.uint8))
    wide.save(photos / "train" / "red" / "wide.png")
    assert extract(photos)[0] == 1
    computed, said = extract(photos, "--max-pixels", str(side * (side + 20)))
    assert computed == 1
    assert "wide.png" in said
    assert extract(photos)[0] == 0


def test_files_are_not_trusted_where_a_store_was_made_by_another_rule(photos: Path) -> None:
    extract(photos, "--background", "drop")
    for index in (photos.parent / "cache").glob(".*"):
        shutil.rmtree(index) if index.is_dir() else index.unlink()
    computed, _ = extract(photos, "--trust-files")
    assert computed == 1
    assert extract(photos, "--trust-files")[0] == 0


def test_a_store_is_repaired_by_the_rule_that_it_was_made_by(photos: Path) -> None:
    extract(photos, "--background", "black")
    (store,) = (photos.parent / "cache").glob("*/*.zarr")
    before = {path.name: path.read_bytes() for path in store.rglob("c/*") if path.is_file()}
    chunk = next(path for path in sorted((store / "tokens").rglob("*")) if path.is_file() and path.name != "zarr.json")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-8] + bytes(8))
    assert not repair_and_fill(store).still_damaged
    assert chunk.read_bytes() == whole
    assert before == {path.name: path.read_bytes() for path in store.rglob("c/*") if path.is_file()}


def test_a_saved_probe_sees_images_as_it_was_trained_to(photos: Path, tmp_path: Path) -> None:
    given = [*MODEL, "--data", f"folder:{photos}", "--cache", tmp_path / "cache", "--runs", tmp_path / "runs"]
    result = run("probe", *given, "--probe", "ridge-last", "--background", "black", "--protocol", "quick")
    assert result.exit_code == 0, result.output
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("probe.json"))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "clip.png").write_bytes(TRANSPARENT["PNG"])
    composited = np.asarray(decode_rgb(TRANSPARENT["PNG"], BLACK)[0])
    Image.fromarray(composited).save(tmp_path / "new" / "composited.png")
    result = run("predict", "--probe", folder, "--data", f"images:{tmp_path / 'new'}", "--json")
    clip, same = json.loads(result.stdout)
    assert clip["probability"] == same["probability"]
