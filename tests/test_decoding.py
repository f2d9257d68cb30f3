"""Encoded images become RGB, or are bad images with a reason; what loses its content on the way is counted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from commands import MODEL, run
from messages import raises
from photos import write_photos
from PIL import Image

import layerbank as lb
from layerbank import RequestError
from layerbank.data.decoding import decode_rgb as decode_by_rule
from layerbank.data.decoding import is_flat
from layerbank.data.pixels import USUAL

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def decode_rgb(stored: bytes | np.ndarray) -> Image.Image:
    return decode_by_rule(stored, USUAL)[0]


def encoded(pixels: np.ndarray = NOISE, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("damage", ["zeros", "cut", "flipped"])
def test_a_png_with_a_damaged_end_is_a_bad_image(share: float, damage: str) -> None:
    whole = encoded()
    place = int(share * len(whole))
    damaged = {
        "zeros": whole[:place] + bytes(len(whole) - place),
        "cut": whole[:place],
        "flipped": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
    }[damage]
    with pytest.raises(ValueError, match="PNG"):
        decode_rgb(damaged)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_whole_files_decode(kind: str) -> None:
    assert decode_rgb(encoded(kind=kind)).size == (30, 40)


def test_bytes_after_the_end_of_a_png_do_not_matter() -> None:
    assert np.array_equal(np.asarray(decode_rgb(encoded() + b"more")), NOISE)


@pytest.mark.parametrize("shape", [(1, 257), (257, 1), (2, 20_000)])
def test_an_image_whose_sides_differ_too_much_is_bad(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="times the other"):
        decode_rgb(encoded(np.zeros((*shape, 3), np.uint8)))


def test_a_thin_image_that_models_can_take_is_not() -> None:
    assert decode_rgb(encoded(np.zeros((1, 256, 3), np.uint8))).size == (256, 1)


def deep(kind: str, seed: int = 0) -> bytes:
    """What numpy users save: 8-bit values in 16 bits, 12-bit values; and a white drawing on a transparent ground."""
    if kind == "transparent":
        drawing = np.full((40, 30, 4), 255, np.uint8)
        drawing[..., 3] = 0
        drawing[10:20, :, 3] = 255
        return encoded(drawing)
    most = {"8 of 16 bits": 256, "12 of 16 bits": 4096}[kind]
    return encoded(np.random.default_rng(seed).integers(0, most, (40, 30), dtype=np.uint16))


@pytest.mark.parametrize("kind", ["8 of 16 bits", "12 of 16 bits", "transparent"])
def test_images_that_lose_their_content_are_flat(kind: str) -> None:
    assert is_flat(decode_rgb(deep(kind)))


def test_contrast_outside_the_sampled_pixels_counts() -> None:
    pixels = np.zeros((400, 300, 3), np.uint8)
    pixels[7, 11] = 255
    assert not is_flat(Image.fromarray(pixels))


def test_extract_counts_flat_images_once_and_names_one(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 2})
    for number in range(3):
        (photos / "train" / "red" / f"black{number}.png").write_bytes(deep("8 of 16 bits", number))
    result = run(
        "extract", *MODEL, "--data", f"folder:{photos}", "--split", "train", "--levels", "last", "--cache", tmp_path
    )
    assert result.exit_code == 0
    assert "3 images of photos/train with hardly any contrast (train/red/black" in result.stderr


def test_deep_images_from_python_are_scaled_as_those_in_files() -> None:
    pixels = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(40, 30)
    by_pillow = lb.images_from([Image.fromarray(pixels)], [0])
    from_file = lb.images_from([encoded(pixels)], [0])
    assert np.array_equal(np.asarray(by_pillow.load(0)[0]), np.asarray(from_file.load(0)[0]))


@pytest.mark.parametrize("labels", [[-1, 0, 1], np.array([0, 1, 2**63], np.uint64)])
def test_class_numbers_that_mean_no_label_are_refused(labels: object) -> None:
    with raises("data.negative_class_number", RequestError):
        lb.images_from([NOISE] * 3, labels)


def test_pixels_of_a_thin_image_are_refused_as_those_of_a_file_are() -> None:
    with pytest.raises(ValueError, match="times the other"):
        decode_rgb(np.zeros((1, 257, 3), np.uint8))
