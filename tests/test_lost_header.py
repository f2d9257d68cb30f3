"""A store that lost its header gets it back from the extraction that made it, if all that is left agrees; else nothing changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import MODEL, run
from messages import refuses
from photos import write_photos
from stores import tree

from layerbank.cache import verify_store

HEADER, JOURNAL, CHUNK = "zarr.json", "content_hashes/.journal/worker-0.jsonl", "tokens/final/cls/c.0.0"


def extract(photos: Path, cache: Path, *more: object) -> list[object]:
    return [
        "extract",
        *MODEL,
        "--data",
        f"folder:{photos}",
        "--split",
        "train",
        "--cache",
        cache,
        "--levels",
        "last",
        *more,
    ]


@pytest.fixture(scope="module")
def sound(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    assert run(*extract(photos, root)).exit_code == 0
    (store,) = root.rglob("*.zarr")
    return store


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound.parent, tmp_path / sound.parent.name)
    return tmp_path / sound.parent.name / sound.name


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


LOST: dict[str, Callable[[Path], object]] = {
    "missing": lambda store: (store / HEADER).unlink(),
    "altered": lambda store: flip(store / HEADER),
    "cut off": lambda store: (store / HEADER).write_bytes((store / HEADER).read_bytes()[:-100]),
    "another group": lambda store: (store / HEADER).write_text('{"zarr_format": 3, "node_type": "group"}'),
}


@pytest.mark.parametrize("how", LOST)
def test_a_lost_header_is_made_again_and_costs_no_row(
    how: str, store: Path, sound: Path, photos: Path, loads: list[int]
) -> None:
    LOST[how](store)
    loads.clear()
    done = run(*extract(photos, store.parents[1]))
    assert done.exit_code == 0, done.output
    assert len(loads) <= 32  # those of the comparison with float32
    assert tree(store) == tree(sound)
    assert verify_store(store) == []


def test_repair_says_that_the_extraction_makes_a_lost_header_again(store: Path) -> None:
    (store / HEADER).unlink()
    refuses(run("cache", "repair", store), "cache.header_lost", 1, store=store)
    refuses(run("cache", "info", store), "cache.header_lost", 1)
    assert run("cache", "verify", store).exit_code == 1


def test_arrays_that_are_not_asked_for_are_kept(store: Path, sound: Path, photos: Path) -> None:
    (store / HEADER).unlink()
    assert run(*extract(photos, store.parents[1], "--kinds", "cls")).exit_code == 0
    assert verify_store(store) == []
    assert run(*extract(photos, store.parents[1])).exit_code == 0
    left, wanted = tree(store), tree(sound)
    assert left.pop(HEADER) != wanted.pop(HEADER)  # the comparison of the other array with float32 is lost
    assert left == wanted


def test_a_damaged_chunk_beside_a_lost_header_is_computed_again_and_no_other(
    photos: Path, tmp_path: Path, many_photos: Path, extract_arguments: tuple[str, ...], extracted_store: Path
) -> None:
    store = tmp_path / extracted_store.parent.name / extracted_store.name
    shutil.copytree(extracted_store.parent, store.parent)
    (store / HEADER).unlink()
    flip(store / CHUNK)
    assert run(*extract_arguments, "--cache", tmp_path).exit_code == 0
    assert tree(store) == tree(extracted_store)


def all_chunks(store: Path) -> None:
    for file in (store / "tokens/final/cls").glob("c.*"):
        flip(file)


def other_shape(store: Path) -> None:
    file = store / "tokens/final/cls/zarr.json"
    file.write_text(file.read_text().replace("64", "32"))


CONTRADICTIONS: dict[str, Callable[[Path], object]] = {
    "content hashes": lambda store: flip(store / "content_hashes/c.0"),
    "all chunks": all_chunks,
    "metadata of another shape": other_shape,
    "no metadata": lambda store: (store / "tokens/final/ap/zarr.json").unlink(),
    "views": lambda store: (store / "views").mkdir(),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_header_that_something_contradicts_is_not_made(what: str, store: Path, photos: Path) -> None:
    (store / HEADER).unlink()
    CONTRADICTIONS[what](store)
    before = tree(store)
    refuses(run(*extract(photos, store.parents[1])), "cache.header_not_rebuilt", 1, store=store)
    assert tree(store) == before


def test_images_that_changed_are_never_taken_for_those_of_the_store(store: Path, tmp_path: Path) -> None:
    """Their store has another path; the one without a header stays as it is."""
    changed = write_photos(tmp_path / "photos", {"train": 40, "test": 20}, seed=1)
    (store / HEADER).unlink()
    before = tree(store)
    run(*extract(changed, store.parents[1]))
    assert tree(store) == before
    new = next(path for path in store.parent.glob("*.zarr") if path != store)
    shutil.rmtree(new)
    store.rename(new)  # in the place of theirs
    refuses(run(*extract(changed, store.parents[1])), "cache.header_not_rebuilt", 1, store=new)
    assert tree(new) == before
