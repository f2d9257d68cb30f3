"""The catalogue of the study: names, folders, sizes, and what is said when data are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serve_dataset
from messages import raises, shows

from layerbank import RequestError, WorkError
from layerbank.data.catalogue import (
    CATALOGUE,
    Entry,
    check_size,
    find_data,
    find_entry,
    locate_data,
    require_entry,
)
from layerbank.probes.data.batches import plan_batches
from layerbank.statistics.paper import published_scores

CIFAR = require_entry("vtab/cifar10")


def write_data(folder: Path) -> Path:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        (folder / split / "0.tar").touch()
    return folder


def test_there_are_twenty_and_the_paper_publishes_all_but_imagenet() -> None:
    assert len(CATALOGUE) == len({entry.name for entry in CATALOGUE}) == 20
    published = {score.dataset for score in published_scores()}
    assert {entry.title for entry in CATALOGUE} - published == {"ImageNet-1k"}


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        ("fer2013", 1979), ("voc2007", 1426), ("cars", 1480), ("fgvc_aircraft", 606), ("stl10", 1000), ("gtsrb", 1973),
        ("country211", 2110), ("vtab/caltech101", 500), ("vtab/cifar10", 2048), ("vtab/dmlab", 2016), ("vtab/dtd", 376),
        ("vtab/flowers", 204), ("vtab/pets", 535), ("vtab/resisc45", 2100), ("vtab/svhn", 2028),
    ],
)  # fmt: skip
def test_training_sizes_give_the_papers_batch_sizes(name: str, batch_size: int) -> None:
    """Independent of the list the sizes were taken from: the batch rule turns each into the batch the authors report."""
    plan = plan_batches(require_entry(name).num_train, wish=2048, epochs=40, min_steps=1000)
    assert plan.batch_size == batch_size


def test_every_spelling_finds_its_entry_and_no_two_entries_share_one() -> None:
    for entry in CATALOGUE:
        short = entry.name.removeprefix("vtab/")
        for name in (entry.name, f"wds/{entry.name}", entry.folder, f"wds_{short}", short, entry.title):
            assert find_entry(name) is entry
    assert find_entry("cifar") is None


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with raises("data.unknown_study_data", RequestError, name="vtab/cifar", advice="Did you mean 'vtab/cifar10'?"):
        require_entry("vtab/cifar")


@pytest.mark.parametrize("layout", ["wds_vtab-cifar10", "wds_cifar10", "wds/vtab/cifar10"])
def test_data_are_found_in_the_layouts_of_the_hub_and_of_the_paper(tmp_path: Path, layout: str) -> None:
    folder = write_data(tmp_path / layout)
    assert find_data(CIFAR, tmp_path) == folder
    assert locate_data(CIFAR, tmp_path, fetch=False) == f"wds:{folder}"


def test_half_a_download_is_no_data(tmp_path: Path) -> None:
    folder = write_data(tmp_path / CIFAR.folder)
    (folder / "test" / "0.tar").unlink()
    assert find_data(CIFAR, tmp_path) is None


def test_a_missing_shard_is_half_a_copy(tmp_path: Path) -> None:
    folder = write_data(tmp_path / CIFAR.folder)
    (folder / "train" / "nshards.txt").write_text("2\n")
    assert find_data(CIFAR, tmp_path) is None
    (folder / "train" / "1.tar").touch()
    assert find_data(CIFAR, tmp_path) == folder


def test_data_that_are_not_there_are_an_error_that_says_how_to_get_them(tmp_path: Path) -> None:
    values = {"folder": tmp_path / "wds_vtab-cifar10", "repository": "clip-benchmark/wds_vtab-cifar10"}
    with raises("data.not_on_disk", WorkError, name="vtab/cifar10", **values):
        locate_data(CIFAR, tmp_path, fetch=False)


def locate(root: Path, *names: str, **environment: str) -> list[str]:
    """What `locate_data` prints, in a process of its own: the hub's library reads its environment when it is imported."""
    code = (
        "import sys; from pathlib import Path; from layerbank import WorkError\n"
        "from layerbank.data.catalogue import locate_data, require_entry\n"
        "for name in sys.argv[2:]:\n"
        "    try: print(locate_data(require_entry(name), Path(sys.argv[1]), on_download=print))\n"
        "    except WorkError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(root), *names],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(root / "home"), **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().split("\n")


def test_data_that_are_not_there_are_fetched_once_and_whole_and_nothing_beside_them(tmp_path: Path) -> None:
    """From a real server that speaks the hub's protocol."""
    wanted = {f"{split}/{name}": name.encode() for split in ("train", "test") for name in ("0.tar", "nshards.txt")}
    wanted = {name: b"1" if name.endswith("txt") else data for name, data in wanted.items()} | {
        "classnames.txt": b"a\nb\n"
    }
    asked: list[str] = []
    others = {"README.md": b"#", "default/train/0000.parquet": b"the same images once more"}
    with serve_dataset("clip-benchmark/wds_vtab-dtd", {**wanted, **others}, asked) as address:
        said = locate(tmp_path, "dtd", "vtab/dtd", "cars", HF_ENDPOINT=address)
    folder = tmp_path / "wds_vtab-dtd"
    assert said[:3] == ["clip-benchmark/wds_vtab-dtd", f"wds:{folder}", f"wds:{folder}"]
    assert sorted(asked) == sorted(wanted)
    assert {name: (folder / name).read_bytes() for name in wanted} == wanted
    assert said[3] == "clip-benchmark/wds_cars"  # which this hub does not have
    assert shows(said[4], "data.not_on_the_hub")
    assert "neither: 404" in said[4]
    assert not (tmp_path / ".wds_vtab-dtd.part").exists()


def test_a_folder_that_lacks_shards_is_left_alone(tmp_path: Path) -> None:
    folder = write_data(tmp_path / CIFAR.folder)
    (folder / "test" / "0.tar").unlink()
    with raises("data.incomplete_folder", WorkError, folder=folder):
        locate_data(CIFAR, tmp_path)
    assert (folder / "train" / "0.tar").exists()


def test_offline_the_hub_is_named_as_what_failed(tmp_path: Path) -> None:
    first, message = locate(tmp_path, "dtd", HF_HUB_OFFLINE="1")
    assert first == "clip-benchmark/wds_vtab-dtd"
    assert shows(message, "data.not_on_the_hub")
    assert "hf download --repo-type dataset clip-benchmark/wds_vtab-dtd" in message


def test_data_of_another_size_are_not_the_studys() -> None:
    check_size(CIFAR, num_train=45000, num_classes=10)
    with raises("data.not_the_studys_data", study_train=45000, study_classes=10, num_train=50000, num_classes=10):
        check_size(CIFAR, num_train=50000, num_classes=10)
    stl = require_entry("stl10")
    with raises("data.not_the_studys_data", RequestError, study_train=5000, num_train=5000, num_classes=9):
        check_size(stl, num_train=5000, num_classes=9)


def test_twelve_use_the_splits_of_vtab() -> None:
    assert sum(entry.name.startswith("vtab/") for entry in CATALOGUE) == 12
    assert all(isinstance(entry, Entry) for entry in CATALOGUE)
