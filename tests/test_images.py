"""Decoding in worker processes: every image once, in order, the same bytes for any number of workers, no process left."""

import multiprocessing
import os
import signal
import time
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import raises
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor
from xxhash import xxh3_64_intdigest

from layerbank.data.image_source import row_hash
from layerbank.data.sources import BadImage, ImageSource, open_source
from layerbank.errors import WorkError
from layerbank.extraction.decoding import (
    PREFETCHED_BATCHES,
    Rows,
    _death_of_a_worker,
    decode_batches,
    start_worker_server,
)

EVALUATION = Compose([Resize(14), CenterCrop(14), ToTensor()])
BATCHES = [Rows(0, 4), Rows(4, 8), Rows(8, 11)]


@pytest.fixture(autouse=True, scope="module")
def _imports_run_beside_the_first_tests() -> None:
    start_worker_server()


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    """11 images of noise."""
    for row in range(11):
        path = tmp_path / "noise" / "train" / f"class{row % 2}" / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return open_source(f"folder:{tmp_path}/noise", "train")


class CountingSource(ImageSource):
    """Leaves a file for every image it loads; its images are grey, the row number bright."""

    def __init__(self, folder: Path, num_images: int) -> None:
        self.folder = folder
        rows = [str(row) for row in range(num_images)]
        zeros = np.zeros(num_images, dtype=np.int64)
        super().__init__(
            name="counted",
            split="train",
            ids=rows,
            labels=zeros,
            class_names=["a"],
            sizes=zeros,
        )

    def read(self, row: int) -> np.ndarray:
        (self.folder / f"{row}-{time.monotonic_ns()}").touch()
        return np.full((4, 4), row, dtype=np.uint8)

    def file_of(self, row: int) -> str:
        return "memory"

    def loaded(self) -> list[int]:
        return sorted(int(path.name.split("-")[0]) for path in self.folder.iterdir())


class DyingSource(CountingSource):
    def read(self, row: int) -> np.ndarray:
        if row == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(row)


def threads_of_this_process(image: Image.Image) -> torch.Tensor:
    return torch.full((3, 1, 1), float(torch.get_num_threads()))


def number_of_this_process(image: Image.Image) -> torch.Tensor:
    return torch.full((3, 1, 1), os.getpid())


def fail_on_row_5(image: Image.Image) -> torch.Tensor:
    if image.getpixel((0, 0)) == (5, 5, 5):
        raise KeyError("the transform is wrong")
    return ToTensor()(image)


def wait_until_no_workers_are_left() -> None:
    end = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_are_the_transformed_images_in_order(source, num_workers):
    batches = list(decode_batches(source, [EVALUATION], BATCHES, num_workers=num_workers))
    assert [Rows(batch.start, batch.stop) for batch in batches] == BATCHES
    for batch in batches:
        assert batch.images[0].shape == (batch.stop - batch.start, 3, 14, 14)
        assert batch.images[0].dtype == torch.float32
        assert batch.content_hashes.dtype == np.uint64
        assert batch.bad == {}
        for row in range(batch.start, batch.stop):
            image, content_hash = source.load(row)
            assert torch.equal(batch.images[0][row - batch.start], EVALUATION(image))
            assert batch.content_hashes[row - batch.start] == content_hash
            assert content_hash == xxh3_64_intdigest(Path(source.file_of(row)).read_bytes())


def test_the_bytes_depend_neither_on_the_number_of_workers_nor_on_the_run(source):
    def everything(num_workers: int) -> list[bytes]:
        batches = decode_batches(source, [EVALUATION], BATCHES, num_workers=num_workers)
        return [batch.images[0].numpy().tobytes() + batch.content_hashes.tobytes() for batch in batches]

    reference = everything(0)
    for num_workers in (0, 1, 2, 2):
        assert everything(num_workers) == reference


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_image_is_decoded_exactly_once(tmp_path, num_workers):
    source = CountingSource(tmp_path, 23)
    batches = list(
        decode_batches(source, [ToTensor()], [Rows(0, 8), Rows(8, 16), Rows(16, 23)], num_workers=num_workers)
    )
    assert source.loaded() == list(range(23))
    rows = torch.cat([batch.images[0][:, 0, 0, 0] for batch in batches]) * 255
    assert rows.round().tolist() == list(range(23))


def test_only_the_asked_rows_are_decoded_in_the_asked_order(tmp_path):
    source = CountingSource(tmp_path, 23)
    batches = list(decode_batches(source, [ToTensor()], [Rows(20, 22), Rows(3, 5)], num_workers=1))
    assert [(batch.start, batch.stop) for batch in batches] == [(20, 22), (3, 5)]
    assert source.loaded() == [3, 4, 20, 21]


def test_workers_decode_only_a_few_batches_ahead_of_the_consumer(tmp_path):
    source = CountingSource(tmp_path, 100)
    with closing(decode_batches(source, [ToTensor()], [Rows(n, n + 1) for n in range(100)], num_workers=2)) as batches:
        next(batches)
        time.sleep(1)
        assert len(source.loaded()) <= 1 + 2 * PREFETCHED_BATCHES


def test_no_batches_are_no_work(source):
    assert list(decode_batches(source, [EVALUATION], [], num_workers=0)) == []
    assert list(decode_batches(source, [EVALUATION], [], num_workers=2)) == []


# --- bad images ---


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_is_a_row_of_zeros_and_named_and_its_neighbours_are_untouched(source, num_workers):
    good = list(decode_batches(source, [EVALUATION], BATCHES, num_workers=0))[1]
    Path(source.file_of(4)).write_bytes(b"no image")
    Path(source.file_of(6)).write_bytes(b"")
    batches = list(decode_batches(source, [EVALUATION], BATCHES, num_workers=num_workers))
    batch = batches[1]
    assert {row: error.reason for row, error in batch.bad.items()} == {
        4: "bytes in none of the formats JPEG, PNG, PPM, BMP, TIFF, WEBP",
        6: "no bytes",
    }
    assert isinstance(batch.bad[4], BadImage)
    assert (batch.bad[4].id, batch.bad[4].file) == (source.ids[4], source.file_of(4))
    assert not batch.images[0][[0, 2]].any()
    assert batch.content_hashes[[0, 2]].tolist() == [row_hash(b"no image"), row_hash(b"")]
    assert torch.equal(batch.images[0][[1, 3]], good.images[0][[1, 3]])
    assert [len(other.bad) for other in batches] == [0, 2, 0]


def test_a_batch_of_bad_images_only_has_its_shape(source):
    for row in range(4, 8):
        Path(source.file_of(row)).unlink()
    batch = list(decode_batches(source, [EVALUATION], BATCHES, num_workers=0))[1]
    assert batch.images[0].shape == (4, 3, 14, 14)
    assert not batch.images[0].any()
    assert sorted(batch.bad) == [4, 5, 6, 7]


# --- processes ---


def test_a_worker_has_one_thread(source):
    _, *batches = decode_batches(source, [threads_of_this_process], BATCHES, num_workers=1)
    assert [batch.images[0].unique().tolist() for batch in batches] == [[1], [1]]


def test_the_first_batch_is_decoded_here_while_the_workers_start_and_the_others_there(source):
    pids = [
        batch.images[0].unique().tolist()
        for batch in decode_batches(source, [number_of_this_process], BATCHES, num_workers=1)
    ]
    assert pids[0] == [os.getpid()]
    assert pids[1] == pids[2] != pids[0]


def test_workers_do_not_come_from_a_fork_of_this_process():
    from layerbank.extraction.decoding import _worker_context

    assert _worker_context().get_start_method() in ("forkserver", "spawn")


def test_no_process_is_left_at_the_end(source):
    list(decode_batches(source, [EVALUATION], BATCHES, num_workers=2))
    wait_until_no_workers_are_left()


def test_no_process_is_left_when_the_consumer_stops_early(source):
    with closing(decode_batches(source, [EVALUATION], BATCHES, num_workers=2)) as batches:
        next(batches)
    assert multiprocessing.active_children() == []


def test_no_process_is_left_when_the_consumer_raises(source):
    def consume() -> None:
        for batch in decode_batches(source, [EVALUATION], BATCHES, num_workers=2):
            raise ZeroDivisionError(batch.start)

    with pytest.raises(ZeroDivisionError):
        consume()
    wait_until_no_workers_are_left()


def test_no_process_is_left_when_a_transform_raises_and_its_error_arrives(tmp_path):
    batches = decode_batches(CountingSource(tmp_path, 8), [fail_on_row_5], [Rows(0, 4), Rows(4, 8)], num_workers=2)
    next(batches)
    with pytest.raises(KeyError, match="the transform is wrong") as caught:
        next(batches)
    assert multiprocessing.active_children() == []  # while the traceback, and with it the loader, is still held
    assert caught.value.__traceback__ is not None


@pytest.mark.parametrize("error", [EOFError(), ConnectionRefusedError(111, "refused"), FileNotFoundError(2, "gone")])
def test_a_batch_lost_with_its_worker_is_told_apart_from_an_error_of_its_own_code(error):
    assert _death_of_a_worker(error) == f"a worker that ended while it handed over a batch ({type(error).__name__})"
    assert _death_of_a_worker(type(error)("Caught it in DataLoader worker process 0.")) is None
    assert _death_of_a_worker(RuntimeError("anything else")) is None


def test_a_worker_that_dies_is_work_that_failed(tmp_path):
    batches = decode_batches(DyingSource(tmp_path, 8), [ToTensor()], [Rows(0, 4), Rows(4, 8)], num_workers=1)
    with raises("extraction.decoding_process_died", WorkError) as refused:
        list(batches)
    reason = refused.error.values["reason"]
    assert reason.startswith(("DataLoader worker (pid", "a worker that ended while it handed over a batch"))
    assert multiprocessing.active_children() == []


def test_more_workers_than_cores_or_batches_is_no_warning(source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(decode_batches(source, [EVALUATION], [Rows(0, 2), Rows(2, 4)], num_workers=3))) == 2


def test_the_global_random_state_is_left_alone(source):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    list(decode_batches(source, [EVALUATION], BATCHES, num_workers=1))
    assert torch.equal(torch.rand(3), expected)


def test_hdf5_and_tars_are_opened_in_each_worker(tmp_path):
    import h5py

    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 20, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a_train.h5", "w") as file:
        file["x"], file["y"] = pixels, np.zeros(11, dtype=np.int64)
    source = open_source(f"hdf5:{tmp_path}/a_{{split}}.h5", "train")
    source.load(0)  # opened here first
    batches = list(decode_batches(source, [ToTensor()], BATCHES, num_workers=2))
    decoded = (torch.cat([batch.images[0] for batch in batches]) * 255).round().to(torch.uint8)
    assert np.array_equal(decoded.permute(0, 2, 3, 1).numpy(), pixels)
