"""The Python interface: data from objects, models of one's own, tokens, results, classifiers; the names of `layerbank`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from messages import raises
from photos import TINY_MODEL, TINY_WIDTH, write_photos
from PIL import Image
from torch.utils.data import Dataset

import layerbank as lb
from layerbank.events import Event, RowsFound


@pytest.fixture(scope="module")
def model() -> lb.Model:
    return lb.open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), {"train": 8, "test": 4})


def extract(model: lb.Model, images: lb.ImageSource, cache: Path, **more: Any) -> lb.Tokens:
    return lb.extract(model, images, levels="last", cache=cache, **{"progress": False, **more})


def pixels_of(photos: Path, split: str) -> tuple[list[np.ndarray[Any, Any]], list[str]]:
    files = sorted((photos / split).rglob("*.png"))
    return [np.asarray(Image.open(file)) for file in files], [file.parent.name for file in files]


def test_every_name_of_layerbank_is_there_and_documented_with_an_example() -> None:
    functions = [getattr(lb, name) for name in lb.__all__ if callable(getattr(lb, name)) and name[0].islower()]
    assert sorted(lb.__all__) == dir(lb)
    assert all(one.__doc__ and ">>> " in one.__doc__ and "Raises:" in one.__doc__ for one in functions)
    assert [
        name for name in lb.__all__ if name != "__version__" and ">>> " not in (getattr(lb, name).__doc__ or "")
    ] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lb.nothing  # noqa: B018


def test_the_lazy_names_are_those_of_the_type_checker() -> None:
    source = ast.parse(Path(lb.__file__).read_text(encoding="utf-8"))
    homes = {
        name.name: node.module
        for block in source.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert homes == lb._HOMES


def test_from_images_to_a_classifier(model: lb.Model, photos: Path, tmp_path: Path) -> None:
    train, test = (
        extract(model, lb.open_images(f"folder:{photos}", split), tmp_path / "caches") for split in ("train", "test")
    )
    assert (len(train), train.class_names, train.arrays) == (
        24,
        ["blue", "green", "red"],
        [("final", "cls"), ("final", "ap")],
    )
    results = lb.probe(train, test, probes=["ridge-cls", "attn-last"], runs=tmp_path / "runs", progress=False)
    assert [one.probe for one in results] == ["ridge-cls", "attn-last"]
    assert results.best.balanced_accuracy == results.best.row["test"]["balanced_accuracy"]
    assert [line["probe"] for line in results.records()] == ["ridge-cls", "attn-last"]
    assert "ridge-cls" in repr(results)
    files = sorted((photos / "test").rglob("*.png"))
    classifier = results[0].classifier()
    found = classifier.predict_proba(files)
    saved = np.load(results[0].folder / "test.npz")
    logits = saved["logits"][[saved["sample_ids"].tolist().index(str(file.relative_to(photos))) for file in files]]
    assert found.shape == (12, 3)
    assert (found.argmax(1) == logits.argmax(1)).all()
    assert np.allclose(found.sum(1), 1, atol=1e-6)
    assert classifier.predict([Image.open(file) for file in files]) == classifier.predict(files)
    assert results[1].plot_attention().axes[0].get_xlabel() == "level"


def test_arrays_pil_images_bytes_and_a_data_set_of_one_content_are_one_store(
    model: lb.Model, photos: Path, tmp_path: Path
) -> None:
    pixels, labels = pixels_of(photos, "train")

    class Pairs(Dataset[Any]):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.from_numpy(pixels[index].copy()).permute(2, 0, 1), ["blue", "green", "red"].index(
                labels[index]
            )

    as_pil = [Image.fromarray(one) for one in pixels]
    sources = [
        lb.images_from(np.stack(pixels), labels),
        lb.images_from(as_pil, labels),
        lb.images_from(Pairs(), class_names=["blue", "green", "red"]),
    ]
    tokens = [extract(model, source, tmp_path) for source in sources]
    assert len({store for one in tokens for store in one.stores}) == 1
    assert all((one.labels == tokens[0].labels).all() and one.class_names == ["blue", "green", "red"] for one in tokens)
    encoded = lb.images_from([file.read_bytes() for file in sorted((photos / "train").rglob("*.png"))], labels)
    paths = lb.images_from(sorted((photos / "train").rglob("*.png")), labels)
    of_files = [extract(model, source, tmp_path) for source in (encoded, paths, lb.open_images(f"folder:{photos}"))]
    assert len({store for one in of_files for store in one.stores}) == 1
    assert all(
        (np.asarray(one["final", "cls"]) == np.asarray(tokens[0]["final", "cls"])).all() for one in (*of_files, *tokens)
    )


def test_a_second_extraction_computes_nothing_and_an_image_more_one_row(
    model: lb.Model, photos: Path, tmp_path: Path
) -> None:
    pixels, labels = pixels_of(photos, "train")
    events: list[Event] = []
    for count in (23, 23, 24):
        extract(model, lb.images_from(pixels[:count], labels[:count]), tmp_path, progress=events.append)
    found = [event for event in events if isinstance(event, RowsFound)]
    assert [(one.num_found, one.num_missing) for one in found] == [(0, 23), (23, 0), (23, 1)]


def test_an_array_is_sliced_like_numpy(model: lb.Model, photos: Path, tmp_path: Path) -> None:
    tokens = extract(model, lb.open_images(f"folder:{photos}"), tmp_path, kinds=("cls", "grid2"))
    array = tokens["final", "grid2"]
    whole = np.asarray(array)
    assert (array.shape, array.dtype, len(array)) == ((24, 4, TINY_WIDTH), np.float16, 24)
    for index in (
        3,
        -1,
        slice(2, 9, 3),
        [5, 1, 1],
        np.arange(24) % 2 == 0,
        (slice(0, 3), 1),
        (4, 2),
        (slice(None), slice(0, 2), 7),
    ):
        assert (array[index] == whole[index]).all()
    with pytest.raises(IndexError):
        array[24]


def test_a_data_set_that_changes_between_calls_stops_the_work(model: lb.Model, tmp_path: Path) -> None:
    class Changing(Dataset[Any]):
        calls = 0

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            Changing.calls += 1
            return torch.full((3, 32, 32), Changing.calls % 251, dtype=torch.uint8), index % 2

    with raises("cache.changed_image"):
        extract(model, lb.images_from(Changing(), class_names=["a", "b"]), tmp_path)


def test_images_that_do_not_fit_are_refused(model: lb.Model, tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    with raises("data.no_items"):
        lb.images_from([])
    with raises("data.number_of_labels", images=4):
        lb.images_from(pixels, [0, 1])
    with raises("data.number_of_ids", ids=1):
        lb.images_from(pixels, [0, 1, 0, 1], ids=["a"])
    with raises("data.label_out_of_range", high=3):
        lb.images_from(pixels, [0, 1, 2, 3], class_names=["a", "b"])
    with raises("data.labels_of_other_type"):
        lb.images_from(pixels, [0.5, 1, 0, 1], class_names=["a", "b"])
    with raises("data.label_without_name", label="d"):
        lb.images_from(pixels, ["a", "b", "a", "d"], class_names=["a", "b"])
    with raises("data.not_an_image", dtype="float32"):
        lb.images_from(pixels.astype(np.float32), [0, 1, 0, 1])
    with pytest.raises(lb.WorkError, match="float32"):
        extract(model, lb.images_from([pixels[0], *pixels[1:].astype(np.float32)], [0, 1, 0, 1]), tmp_path)


def test_a_module_of_ones_own_gives_the_tokens_of_its_blocks(photos: Path, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    own = timm.create_model("test_vit", img_size=32).eval()
    wrapped = lb.model_from(own, blocks="blocks", name="own/tiny", image_size=32, device="cpu")
    tokens = extract(wrapped, lb.open_images(f"folder:{photos}"), tmp_path, storage_dtype="float32")
    pixels = torch.stack([wrapped.backbone.transform(Image.open(photos / id).convert("RGB")) for id in tokens.ids])
    with torch.inference_mode():
        expected = own.forward_features(pixels)[:, 0].numpy()
    assert np.allclose(tokens["final", "cls"][:], expected, atol=1e-5)
    with raises("models.no_list_of_blocks", candidates="blocks"):
        lb.model_from(own, blocks="encoder.layers", image_size=32, device="cpu")


def test_a_result_names_what_it_cannot_do(model: lb.Model, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    train, test = (
        extract(model, lb.open_images(f"folder:{photos}", split), tmp_path / "caches") for split in ("train", "test")
    )
    results = lb.probe(train, test, probes=["ridge-cls"], runs=tmp_path / "runs", progress=False)
    with raises("probing.no_attention_map"):
        results.best.plot_attention()
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with raises("api.no_pandas"):
        results.to_frame()
    results[0].row["test"] = None
    with raises("api.no_finished_probe"):
        results.best  # noqa: B018
    with raises("cache.rows_missing"):
        lb.probe(train, test, probes=["linear-all"], runs=tmp_path / "runs", progress=False)


def test_labels_of_a_data_set_are_those_of_its_items_not_its_targets() -> None:
    class Transformed(Dataset[Any]):
        targets = (0, 1, 2, 3)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(3, 8, 8, dtype=torch.uint8), self.targets[index] % 2

    assert lb.images_from(Transformed(), class_names=["even", "odd"]).labels.tolist() == [0, 1, 0, 1]
