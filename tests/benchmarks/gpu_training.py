"""Sections of gpu.py about stage two but for its step. Tokens are noise around a mean of their class, normalised, on the device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_sizes import Measured

from layerbank.cache import ArraySpec, CacheWriter, ModelSpec
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.data.splits.split_rows import wanted_rows
from layerbank.memory import HEADROOM
from layerbank.probes import (
    PAPER,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Head,
    Setting,
    TrainingProtocol,
    l2_normalize,
    read_batches,
    run_sweep,
)
from layerbank.probes.banks.bank import CHUNK_SIZE, GROUP_SIZE
from layerbank.probes.matmul import Matmul
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.tokens.placement import MOST_BUFFER_ROWS
from layerbank.probing.tokens.resident import ResidentTokens
from layerbank.probing.tokens.split_tokens import SplitRequest, SplitTokens
from layerbank.probing.tokens.streaming import StreamedTokens
from layerbank.probing.tokens.token_source import CachedTokens

Figures = Iterator[dict[str, Any]]
SPREAD = 4.0  # of the noise, in distances of a class from the mean: hard enough that settings differ


def peak(measured: Measured) -> Figures:
    """What the device can do: FLOP/s of products, bytes/s of a copy, both ways counted."""
    for compute in measured.computes:
        yield {"compute": compute, "product_flops": product_flops(measured, compute)}
    source = torch.zeros(measured.sizes.product**2, device=measured.device)
    target = torch.empty_like(source)
    yield {"copy_bytes_per_s": 2 * source.nbytes / measured.seconds(lambda: target.copy_(source))}


def sweep(measured: Measured) -> Figures:
    """The sweep of the paper, as `layerbank probe` makes it of tokens that lie on the device."""
    sizes = measured.sizes
    train, test = make_source(measured, sizes.num_samples, seed=0), make_source(measured, sizes.num_test, seed=1)
    for compute in measured.computes:
        measured.forget_peak()
        protocol = replace(PAPER, compute=compute, min_steps=sizes.min_steps)
        if not measured.on_gpu:
            protocol = replace(protocol, epochs=1)
        before = torch.cuda.memory_allocated(measured.device) if measured.on_gpu else 0
        results = []
        total_s = measured.once(lambda p=protocol, r=results: r.append(_sweep(measured, train, test, p)))  # type: ignore[misc]
        result, taken = results[0], measured.peak_bytes()
        products = count_products(measured) * result.selection.batch_size * result.selection.num_steps
        flops = 2 * products * result.rungs[0].num_settings / result.seconds["select"]
        yield {
            "compute": compute,
            "total_s": total_s,
            "seconds": result.seconds,
            "num_settings": len(result.scores),
            "num_steps": result.selection.num_steps,
            "flops": flops,
            "share_of_roofline": flops / product_flops(measured, compute),
            "taken_bytes": None if taken is None else taken - before,
            "planned_bytes": result.memory.total_bytes,
            "tokens_bytes": train.tokens.nbytes + test.tokens.nbytes,
            "num_banks": result.memory.num_banks,
            "chosen": None if result.chosen is None else asdict(result.chosen),
            "validation": result.validation,
            "test": None if result.test is None else result.test["balanced_accuracy"],
        }


def accuracy(measured: Measured) -> Figures:
    """Against float32: gradients of the first step, relative to their length; then validation and test of small sweeps, by seed."""
    sizes = measured.sizes
    batch = make_source(measured, min(2048, sizes.num_samples), seed=0)
    exact = gradients_of(measured, batch, "float32")
    for compute in measured.computes:
        rounded = gradients_of(measured, batch, compute)
        yield {
            "compute": compute,
            "gradient_error": float(torch.linalg.vector_norm(rounded - exact) / torch.linalg.vector_norm(exact)),
        }
    for seed in range(sizes.num_seeds):
        train, test = (
            make_source(measured, count, seed=10 * seed + part) for part, count in enumerate(_counts(measured))
        )
        found: dict[str, Any] = {}
        for compute in measured.computes:
            protocol = replace(
                PAPER,
                compute=compute,
                seed=seed,
                lrs=(1e-1, 1e-2, 1e-3),
                weight_decays=(1e-4, 1.0),
                dropouts=(0.0, 0.3),
                epochs=PAPER.epochs if measured.on_gpu else 1,
                min_steps=min(500, sizes.min_steps),
            )
            found[compute] = result = _sweep(measured, train, test, protocol)
            test_accuracy = None if result.test is None else result.test["balanced_accuracy"]
            exact_one = found["float32"]
            yield {
                "compute": compute,
                "seed": seed,
                "validation": result.validation,
                "test": test_accuracy,
                "same_choice": result.chosen == exact_one.chosen,
                "test_less_float32": None
                if test_accuracy is None or exact_one.test is None
                else test_accuracy - exact_one.test["balanced_accuracy"],
            }


def tokens(measured: Measured) -> Figures:
    """Tokens of a store, as `layerbank probe` has them: in the device's memory, or streamed."""
    with tempfile.TemporaryDirectory() as folder:
        cache = write_store(Path(folder), measured)
        stored = CachedTokens(cache, [parse_probe("alf", measured.sizes.depth)])
        held: list[ResidentTokens] = []
        upload_s = measured.once(lambda: held.append(ResidentTokens(stored, measured.device)))
        yield {"what": "upload", "bytes": held[0].size_bytes, "bytes_per_s": held[0].size_bytes / upload_s}
        batch = torch.randperm(len(stored.targets))[:2048]
        widened = stored.in_memory().tokens.to(measured.device)
        exact = ArraySource(widened, stored.targets, stored.task)
        for name, source in (("as stored", held[0]), ("float32", exact)):
            take_s = measured.seconds(lambda s=source: s.take(batch))  # type: ignore[misc]
            waits = measured.waits(lambda s=source: s.take(batch))  # type: ignore[misc]
            yield {"what": f"take, {name}", "rows": len(batch), "take_s": take_s, "waits": waits}
        largest = float((held[0].take(batch) - exact.take(batch)).abs().max())
        yield {"what": "take, largest difference from the host's bits", "difference": largest}
        streamed = StreamedTokens(stored, buffer_rows=MOST_BUFFER_ROWS, device=measured.device)
        order = torch.split(streamed.order(torch.arange(len(stored.targets)), 0, 0), 2048)

        def read() -> None:
            for _, values in read_batches(streamed, order):
                values.to(measured.device, non_blocking=True)

        yield {"what": "stream", "rows_per_s": len(stored.targets) / measured.seconds(read)}


def gradients_of(measured: Measured, source: ArraySource, compute: str) -> torch.Tensor:
    """All gradients of the first step of a probe without dropout, in one row."""
    bank = make_bank(measured, [Setting(lr=1e-2, weight_decay=0.0)], compute, GROUP_SIZE, CHUNK_SIZE)
    weights = torch.full((len(source.targets),), 1 / len(source.targets), device=measured.device)
    with torch.no_grad():
        bank.compute_gradients(source.tokens, source.targets.to(measured.device), weights, {}, source.task)
    return torch.cat([grad.flatten() for stack in bank.stacks for grad in stack.grads.values()]).double()


def make_source(measured: Measured, num_samples: int, *, seed: int) -> ArraySource:
    sizes, device = measured.sizes, measured.device
    shape = sizes.num_tokens, sizes.embed_dim
    centres = torch.randn(sizes.num_classes, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(num_samples) % sizes.num_classes
    values = torch.empty(num_samples, *shape, device=device)
    generator = torch.Generator(device).manual_seed(seed + 1)
    for start in range(0, num_samples, 1024):
        rows = labels[start : start + 1024].to(device)
        noise = torch.randn(len(rows), *shape, generator=generator, device=device)
        values[start : start + 1024] = l2_normalize(centres[rows] + SPREAD * noise)
    return ArraySource(values, labels, sizes.num_classes)


def make_bank(
    measured: Measured, settings: list[Setting], compute: str, group_size: int, chunk_size: int
) -> AttentiveBank:
    probe = AttentiveProbe(measured.sizes.embed_dim, measured.sizes.num_tokens, measured.sizes.num_classes)
    return AttentiveBank(
        [probe] * len(settings),
        [setting.dropout for setting in settings],
        device=measured.device,
        compute=compute,
        group_size=group_size,
        chunk_size=chunk_size,
    )


def grid_of(measured: Measured) -> list[Setting]:
    grid = list(PAPER.settings(head_of(measured)))
    return grid if measured.on_gpu else grid[:4]


def head_of(measured: Measured) -> Head:
    return Head(kind="attentive", num_heads=measured.sizes.num_tokens)


def _sweep(measured: Measured, train: ArraySource, test: ArraySource, protocol: TrainingProtocol) -> Any:
    return run_sweep(
        head_of(measured),
        train,
        lambda: test,
        protocol,
        memory_bytes=int(HEADROOM * torch.cuda.mem_get_info(measured.device)[0]) if measured.on_gpu else None,
        device=measured.device,
    )


def _counts(measured: Measured) -> tuple[int, int]:
    """Images to train and to test on where there are several seeds."""
    return max(measured.sizes.num_samples // 4, 100), measured.sizes.num_test


def product_flops(measured: Measured, compute: str) -> float:
    """FLOP/s of one large matrix product in these numbers."""
    size, device = measured.sizes.product, measured.device
    matmul = Matmul(compute, torch.float32, device)
    a, out = matmul.factor(torch.randn(size, size, device=device)), torch.empty(size, size, device=device)
    with matmul.active():
        return 2 * size**3 / measured.seconds(lambda: matmul.multiply(a, a, out=out))


def count_products(measured: Measured) -> int:
    """Multiplications a sample and probe: 4 of T D H, 6 of D I, 3 of D C."""
    sizes = measured.sizes
    heads = sizes.num_tokens
    inner_dim = heads * 2 * (sizes.embed_dim // heads)
    return (4 * sizes.num_tokens * heads + 6 * inner_dim + 3 * sizes.num_classes) * sizes.embed_dim


def write_store(root: Path, measured: Measured) -> SplitTokens:
    """cls and ap of every level, float16, noise; sorted by class."""
    sizes = measured.sizes
    levels = [*(f"block.{number}" for number in range(sizes.depth)), "final"]
    model = ModelSpec(
        architecture="none",
        weights="0" * 16,
        token_rule="1",
        transform="none",
        compute_dtype="float32",
        storage_dtype="float16",
        name="none",
    )
    numbers = np.arange(sizes.num_stored)
    images = ImageSet(
        hashes=numbers.astype(np.uint64) + np.uint64(1),
        rule1_hashes=None,
        is_known=np.ones(sizes.num_stored, dtype=np.bool_),
        keeps_order=True,
    )
    record = SplitRecord(
        dataset="noise",
        split="train",
        ids=[str(row) for row in range(sizes.num_stored)],
        labels=numbers * sizes.num_classes // sizes.num_stored,
        class_names=[str(number) for number in range(sizes.num_classes)],
        images=images,
    )
    arrays = [
        ArraySpec(level=level, kind=kind, row_shape=(sizes.embed_dim,)) for level in levels for kind in ("cls", "ap")
    ]
    rows = wanted_rows(images, None).rows
    noise = np.random.default_rng(0).standard_normal((4096, sizes.embed_dim)).astype(np.float16)
    path = model.folder(root) / "noise-train.zarr"
    with CacheWriter.open(
        path, model, rows, arrays, name="noise-train", sample_ids=record.ids, batch_size=256
    ) as writer:
        for batch in writer.pending():
            here = np.arange(batch.start, batch.stop)
            values = {array.name: noise[(here + 97 * place) % 4096] for place, array in enumerate(batch.arrays)}
            writer.append(batch, values, content_hashes=rows.hashes[here])
        writer.complete()
    return SplitRequest(
        cache_root=root,
        model=model,
        tap="norm2",
        record=record,
        rule=None,
        arrays=tuple((array.level, array.kind) for array in arrays),
    ).open()
