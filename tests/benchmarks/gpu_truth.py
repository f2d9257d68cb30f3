"""Section of gpu.py that comes first: is what the device computes right? Everything is compared with float64 on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_sizes import Measured
from gpu_step import StepProgram
from gpu_training import make_source, write_store
from torch import Tensor

from layerbank.probes import (
    QUICK,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Bank,
    Head,
    LinearBank,
    LinearProbe,
    ModuleBank,
    Multiclass,
    Setting,
    fit_bank,
    l2_normalize,
    make_probe,
    read_batches,
)
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.tokens.streaming import StreamedTokens
from layerbank.probing.tokens.token_source import CachedTokens

Figures = Iterator[dict[str, Any]]
LARGEST_ERROR = {"float32": 2e-4, "tf32": 1e-2, "bfloat16": 5e-2}
"""Of gradients, relative to the length of all gradients of a bank; of losses and logits, relative to their own length."""
DROPOUTS = (0.0, 0.3, 0.1)


def truth(measured: Measured) -> Figures:
    """A figure a check; one that is wrong has `error`."""
    yield from bank_checks(measured)
    yield from trainer_check(measured)
    yield from group_checks(measured)
    yield from graph_check(measured)
    yield from streaming_check(measured)


def bank_checks(measured: Measured) -> Figures:
    """Loss, logits and gradients of every kind of bank at every precision."""
    sizes = measured.sizes
    num_rows = min(512, sizes.num_samples)
    generator = torch.Generator().manual_seed(0)
    tokens = l2_normalize(torch.randn(num_rows, sizes.num_tokens, sizes.embed_dim, generator=generator))
    targets = torch.randint(0, sizes.num_classes, (num_rows,), generator=generator)
    weights = torch.rand(num_rows, generator=generator)
    batch = tokens, targets, weights / weights.sum()
    for name, make in banks_of(measured).items():
        exact = gradients_of(make, batch, torch.device("cpu"), "float32", torch.float64)
        length = torch.cat([value.flatten() for key, value in exact.items() if key not in ("loss", "logits")]).norm()
        for compute in measured.computes:
            found = gradients_of(make, batch, measured.device, compute, torch.float32)
            errors = {
                key: float((found[key] - value).norm() / (value.norm() if key in ("loss", "logits") else length))
                for key, value in exact.items()
            }
            worst = max(errors, key=lambda key: float("inf") if errors[key] != errors[key] else errors[key])
            yield checked(f"bank {name}, {compute}, worst {worst}", errors[worst], LARGEST_ERROR[compute])


def banks_of(measured: Measured) -> Mapping[str, Callable[..., Bank]]:
    """Name -> what makes the bank; its arguments are dtype, device and compute."""
    sizes = measured.sizes
    num_tokens, dim, num_classes = sizes.num_tokens, sizes.embed_dim, sizes.num_classes
    shape, num_heads = (num_tokens, dim), 8 if dim % 8 == 0 else 4
    first_half = torch.arange(num_tokens) < num_tokens // 2
    fusion = AttentiveProbe(dim, num_tokens, num_classes)
    masked = AttentiveProbe(dim, num_tokens, num_classes, token_mask=first_half)
    cae = make_probe(Head(kind="cae", num_heads=num_heads), shape, num_classes)
    embedded = make_probe(Head(kind="alf-embed", num_heads=num_tokens, num_levels=sizes.depth), shape, num_classes)
    found: dict[str, Callable[..., Bank]] = {
        "attentive": lambda **where: AttentiveBank([fusion] * 3, DROPOUTS, **where),
        "attentive in chunks": lambda **where: AttentiveBank(
            [fusion] * 3, DROPOUTS, group_size=2, chunk_size=50, **where
        ),
        "attentive with a mask": lambda **where: AttentiveBank([masked] * 3, DROPOUTS, **where),
        "cae": lambda **where: AttentiveBank([cae] * 3, DROPOUTS, **where),  # type: ignore[list-item]
        "alf-embed": lambda **where: AttentiveBank([embedded] * 3, DROPOUTS, **where),  # type: ignore[list-item]
        "linear": lambda **where: LinearBank([LinearProbe(num_tokens * dim, num_classes)] * 3, **where),
    }
    for kind in ("aim", "ep", "abmilp", "simpool", "vjepa", "map", "scalar-mix"):
        head = Head(
            kind=kind,
            num_heads=num_heads if kind in ("aim", "ep", "vjepa", "map") else 0,
            num_levels=sizes.depth if kind == "scalar-mix" else 0,
        )
        probe = make_probe(head, shape, num_classes)
        found[kind] = lambda probe=probe, **where: ModuleBank([probe] * 2, **where)
    return found


def gradients_of(
    make: Callable[..., Bank],
    batch: tuple[Tensor, Tensor, Tensor],
    device: torch.device,
    compute: str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Gradients by name, "loss" [P] and "logits" [P, B, C], float64 on the CPU."""
    bank = make(device=device, compute=compute, dtype=dtype)
    tokens, targets, weights = (value.to(device) for value in batch)
    tokens, weights = tokens.to(dtype), weights.to(dtype)
    if isinstance(bank, LinearBank):
        tokens = tokens.flatten(1)
    noise = {
        heads: torch.rand(
            len(tokens), tokens.shape[1], heads, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ).to(device, dtype)
        for heads in bank.noise_heads
    }
    with torch.no_grad():
        logits = bank.logits(tokens)
        loss = bank.compute_gradients(tokens, targets, weights, noise, Multiclass(num_classes=logits.shape[-1]))
        found = {"loss": loss, "logits": logits}
    for number, stack in enumerate(bank.stacks):
        found |= {f"{number} {name}": value for name, value in stack.grads.items()}
    return {name: value.double().cpu() for name, value in found.items()}


def trainer_check(measured: Measured) -> Figures:
    """Ten steps of the trainer without jitter and dropout, against float32 on the CPU."""
    sizes = measured.sizes
    num_rows = min(512, sizes.num_samples)
    source = make_source(replace(measured, device=torch.device("cpu")), num_rows, seed=0)
    protocol = replace(QUICK, jitter_std=0.0, epochs=2, min_steps=10, batch_size=num_rows // 5)
    probe = AttentiveProbe(sizes.embed_dim, sizes.num_tokens, sizes.num_classes)

    def losses(device: torch.device, compute: str) -> Tensor:
        bank = AttentiveBank([probe] * 2, device=device, compute=compute)
        there = ArraySource(source.tokens.to(device), source.targets, source.task)
        settings = [Setting(lr=1e-3, weight_decay=1e-2)] * 2
        return fit_bank(bank, there, torch.arange(num_rows), settings, protocol, max_steps=10).final_loss.cpu()

    exact = losses(torch.device("cpu"), "float32")
    for compute in measured.computes:
        error = float(((losses(measured.device, compute) - exact) / exact).abs().max())
        yield checked(f"trainer, loss after ten steps, {compute}", error, 1e-2)


def group_checks(measured: Measured) -> Figures:
    """All probes in one group against small groups; at the sizes of a GPU, z has more than 2^31 numbers."""
    sizes = measured.sizes
    num_probes, num_rows = (63, 2048) if measured.on_gpu else (6, 40)
    source = make_source(measured, num_rows, seed=0)
    weights = torch.full((num_rows,), 1 / num_rows, device=measured.device)
    probe = AttentiveProbe(sizes.embed_dim, sizes.num_tokens, sizes.num_classes)
    for compute in measured.computes:
        found = []
        for group_size in (3, num_probes):
            bank = AttentiveBank(
                [probe] * num_probes,
                device=measured.device,
                compute=compute,
                group_size=group_size,
                chunk_size=num_rows,
            )
            with torch.no_grad():
                bank.compute_gradients(source.tokens, source.targets.to(measured.device), weights, {}, source.task)
            found.append(torch.cat([stack.grads["to_v.weight"] for stack in bank.stacks]).cpu())
            del bank
            measured.forget_peak()
        error = float((found[0] - found[1]).norm() / found[0].norm())
        yield checked(f"{num_probes} probes in one group, {compute}", error, LARGEST_ERROR[compute])


def graph_check(measured: Measured) -> Figures:
    """Losses of three steps, eager and captured as one CUDA graph: the same bits. Without a GPU both are eager."""
    source = make_source(measured, min(512, measured.sizes.num_samples), seed=0)
    found = []
    for way in ("eager", "graph of all"):
        run = StepProgram(measured, source, "float32", 7, 256).prepared(way)
        found.append(torch.stack([run().clone() for _ in range(3)]))
    yield checked("CUDA graph against eager", float((found[0] - found[1]).abs().max()), 0.0)


def streaming_check(measured: Measured) -> Figures:
    """Every row that is streamed to each device, against the same rows in the host's memory."""
    devices = [measured.device]
    if measured.on_gpu:
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    with tempfile.TemporaryDirectory() as folder:
        stored = CachedTokens(write_store(Path(folder), measured), [parse_probe("alf", measured.sizes.depth)])
        held = stored.in_memory()
        num_rows = len(stored.targets)
        for device in devices:
            streamed = StreamedTokens(stored, buffer_rows=max(64, num_rows // 10), device=device)
            order = torch.split(streamed.order(torch.arange(num_rows), 0, 0), 64)
            worst = 0.0
            for rows, values in read_batches(streamed, order):
                worst = max(worst, float((values.to(device).cpu().float() - held.take(rows).float()).abs().max()))
            yield checked(f"streamed to {device} against the host", worst, 0.0)


def checked(what: str, error: float, most: float) -> dict[str, Any]:
    figure: dict[str, Any] = {"check": what, "largest_error": error, "at_most": most}
    if not error <= most:
        figure["error"] = f"wrong: {what}: {error:.1e}, expected at most {most:.0e}"
    return figure
