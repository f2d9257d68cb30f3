"""How much memory there is, and where a probe's tokens lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import raises
from token_stores import make_rows, make_spec, without_fsync, write_images  # noqa: F401

from layerbank import RequestError
from layerbank.cache import ArraySpec
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.memory import (
    HEADROOM,
    UNKNOWN_BYTES,
    anonymous_memory_bytes,
    available_memory_bytes,
    free_device_bytes,
    memory_for_probes,
    parse_size,
)
from layerbank.probes import QUICK, Candidate, Head, SettingError
from layerbank.probing.probe_spec import ProbeSpec
from layerbank.probing.tokens import placement
from layerbank.probing.tokens.placement import FEWEST_BUFFER_ROWS, MOST_BUFFER_ROWS, Placement, place_tokens
from layerbank.probing.tokens.resident import ResidentTokens
from layerbank.probing.tokens.split_tokens import SplitRequest
from layerbank.probing.tokens.streaming import StreamedTokens
from layerbank.probing.tokens.token_source import CachedTokens

CPU = torch.device("cpu")
GB = 10**9
LARGE, SMALL = 60_000_000, 40_000_000


def system(folder: Path, **files: str) -> dict[str, Path]:
    """A /proc and a /sys/fs/cgroup with these files; __ is a slash."""
    for name, text in files.items():
        file = folder.joinpath(*name.split("__"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return {"proc": folder / "proc", "cgroups": folder / "cgroups"}


@pytest.mark.parametrize("text", ["", "four GB", "-1GB", "0GB", "4 XB", "1e3MB", "4GB or so"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with raises("layerbank.not_a_size", RequestError, text=text):
        parse_size(text)


def test_what_is_free_is_what_the_machine_says_without_groups(tmp_path: Path) -> None:
    where = system(tmp_path, proc__meminfo="MemTotal: 9 kB\nMemAvailable:    5000 kB\n")
    assert available_memory_bytes(**where) == 5000 * 1024
    assert available_memory_bytes(tmp_path / "nothing", tmp_path / "nothing") == UNKNOWN_BYTES


def test_a_control_group_of_version_2_limits_what_is_free(tmp_path: Path) -> None:
    where = system(
        tmp_path,
        proc__meminfo="MemAvailable: 5000 kB\n",
        proc__self__cgroup="0::/user/job\n",
        **{
            "cgroups__user__job__memory.max": "max\n",
            "cgroups__user__job__memory.current": "900000\n",
            "cgroups__user__memory.max": "2000000\n",
            "cgroups__user__memory.current": "1500000\n",
            "cgroups__user__memory.stat": "anon 5\nactive_file 100000\ninactive_file 300000\n",
        },
    )
    assert available_memory_bytes(**where) == 900_000


def test_a_control_group_of_version_1_limits_what_is_free(tmp_path: Path) -> None:
    where = system(
        tmp_path,
        proc__meminfo="MemAvailable: 5000 kB\n",
        proc__self__cgroup="7:blkio:/\n4:cpu,memory:/not/visible/here\n",
        **{
            "cgroups__memory__memory.limit_in_bytes": "2000000\n",
            "cgroups__memory__memory.usage_in_bytes": "1500000\n",
            "cgroups__memory__memory.stat": "total_inactive_file 200000\n",
        },
    )
    assert available_memory_bytes(**where) == 700_000


def test_the_memory_asked_for_is_that_of_the_whole_program() -> None:
    used_bytes = anonymous_memory_bytes()
    assert memory_for_probes("1TB") == pytest.approx(10**12 - used_bytes, abs=1e8)
    assert memory_for_probes(None) == pytest.approx(HEADROOM * available_memory_bytes(), rel=0.2)
    with raises("layerbank.memory_in_use_already", RequestError, option="1MB") as refused:
        memory_for_probes("1MB")
    assert refused.error.values["used"].endswith(" MB")


def test_of_a_gpu_what_torch_keeps_of_tensors_that_are_gone_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tokens of the second probe group would find less memory than those of the first."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 45 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * GB)
    assert free_device_bytes(torch.device("cuda")) == int(HEADROOM * 70 * GB)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> CachedTokens:
    """12,000 rows, 120 of them without tokens; 24 MB in float16."""
    root, count = tmp_path_factory.mktemp("caches"), 12_000
    write_images(root, count, [ArraySpec(level="final", kind="cls", row_shape=(1024,))])
    probe = ProbeSpec(name="linear-cls", head="linear", levels=("final",), kinds=("cls",))
    images = ImageSet(
        hashes=make_rows(count).hashes,
        rule1_hashes=None,
        is_known=np.ones(count, dtype=np.bool_),
        keeps_order=True,
    )
    record = SplitRecord(
        dataset="digits",
        split="train",
        ids=[f"image {row}" for row in range(count)],
        labels=np.arange(count) % 10,
        class_names=[*"0123456789"],
        images=images,
    )
    request = SplitRequest(
        cache_root=root,
        model=make_spec(1).model,
        tap="norm2",
        record=record,
        rule=None,
        arrays=(("final", "cls"),),
    )
    return CachedTokens(request.open(), [probe])


def place(tokens: CachedTokens, memory_bytes: int) -> Placement:
    return place_tokens(
        tokens, [Candidate(head=Head(kind="linear"))], replace(QUICK, batch_size=256), memory_bytes, CPU
    )


def test_tokens_are_resident_where_they_fit_beside_the_training_and_else_streamed(tokens: CachedTokens) -> None:
    assert tokens.stored_bytes == len(tokens.targets) * 2048
    large, middle, small = (place(tokens, size) for size in (GB, LARGE, SMALL))
    assert [one.tokens for one in (large, middle, small)] == ["resident", "resident", "streamed"]
    assert isinstance(large.open(tokens), ResidentTokens)
    assert isinstance(small.open(tokens), StreamedTokens)
    for one in (large, middle, small):
        assert one.planned_bytes <= one.budget_bytes
        assert one.host_bytes <= one.budget_bytes
    assert FEWEST_BUFFER_ROWS <= small.buffer_rows <= MOST_BUFFER_ROWS


def test_resident_and_streamed_tokens_are_the_same_bits(tokens: CachedTokens) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(tokens.targets))[:300])
    for size in (GB, SMALL):
        assert torch.equal(place(tokens, size).open(tokens).take(rows), tokens.take(rows))


def test_the_order_of_streamed_tokens_does_not_hang_on_a_little_memory_more_or_less(tokens: CachedTokens) -> None:
    one, two = place(tokens, SMALL), place(tokens, SMALL + 500_000)
    assert one.buffer_rows == two.buffer_rows


@pytest.mark.parametrize("given_mb", [1, 5, 15, 20])
def test_a_refusal_names_the_memory_of_the_whole_program_that_is_enough(
    tokens: CachedTokens, given_mb: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "anonymous_memory_bytes", lambda: 300_000_000)
    values = {"token_shape": (1024,), "given": f"{300 + given_mb} MB", "used": "300 MB"}
    with raises("probing.too_little_memory", SettingError, **values) as refused:
        place(tokens, given_mb * 10**6)
    needed_mb = int(refused.error.values["needed"].removesuffix(" MB")) - 300
    assert place(tokens, needed_mb * 10**6).planned_bytes <= needed_mb * 10**6
    with raises("probing.too_little_memory", SettingError, needed=f"{300 + needed_mb} MB"):
        place(tokens, (needed_mb - 1) * 10**6)
