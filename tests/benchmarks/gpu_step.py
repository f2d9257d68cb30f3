"""Section of gpu.py about one step of the whole grid: eager, as CUDA graphs, and as the trainer makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_sizes import Measured
from gpu_training import count_products, grid_of, make_bank, make_source, product_flops

from layerbank.probes import PAPER, ArraySource, fit_bank
from layerbank.probes.banks.bank import CHUNK_SIZE, GROUP_SIZE
from layerbank.probes.banks.stack import AdamW
from layerbank.probes.data.batches import plan_batches

Figures = Iterator[dict[str, Any]]


def step(measured: Measured) -> Figures:
    """A step of the grid on one batch that stays where it is: no gathering, no jitter; then the trainer's own steps."""
    sizes, device = measured.sizes, measured.device
    num_rows = plan_batches(sizes.num_samples, wish=PAPER.batch_size, epochs=1, min_steps=1).batch_size
    source = make_source(measured, num_rows, seed=0)
    for compute in measured.computes:
        peak_flops = product_flops(measured, compute)
        for group_size, chunk_size in sizes.groups_and_chunks:
            about = {"compute": compute, "group_size": group_size, "chunk_size": chunk_size, "batch": num_rows}
            losses: dict[str, list[float]] = {}
            for way in ("eager", "graph of gradients", "graph of all"):
                measured.forget_peak()
                try:
                    program = StepProgram(measured, source, compute, group_size, chunk_size)
                    run = program.prepared(way)
                    losses[way] = [float(run().mean()) for _ in range(3)]
                    step_s = measured.seconds(run)
                except (
                    RuntimeError
                ) as error:  # a graph that cannot be made, or memory: the others are still worth knowing
                    yield about | {"way": way, "error": f"{type(error).__name__}: {error}"}
                    continue
                flops = 2 * count_products(measured) * num_rows * program.bank.num_probes / step_s
                yield about | {
                    "way": way,
                    "step_s": step_s,
                    "num_probes": program.bank.num_probes,
                    "share_of_roofline": flops / peak_flops,
                    "peak_bytes": measured.peak_bytes(),
                    "first_losses": losses[way],
                    "as_eager": losses[way] == losses["eager"],
                }
                del program, run
        yield {"compute": compute, **trainer_steps(measured, compute, device)}


def trainer_steps(measured: Measured, compute: str, device: torch.device) -> dict[str, Any]:
    """Seconds of a step as `fit_bank` makes it, gathering, jitter and noise included, and how often the host waits in it."""
    train, settings = make_source(measured, measured.sizes.num_samples, seed=0), grid_of(measured)
    protocol, rows = replace(PAPER, compute=compute), torch.arange(measured.sizes.num_samples)
    bank = make_bank(measured, settings, compute, GROUP_SIZE, CHUNK_SIZE)

    def run(num_steps: int) -> Callable[[], object]:
        return lambda: fit_bank(bank, train, rows, settings, protocol, max_steps=num_steps)

    measured.once(run(2))
    few_s, many_s = measured.once(run(2)), measured.once(run(12))
    waits = [measured.waits(run(num_steps)) for num_steps in (2, 6)]
    return {"way": "fit_bank", "step_s": (many_s - few_s) / 10, "waits_a_step": (waits[1] - waits[0]) / 4}


class StepProgram:
    """Gradients, clipping and AdamW of the grid on one batch, in memory that stays."""

    def __init__(self, measured: Measured, source: ArraySource, compute: str, group_size: int, chunk_size: int) -> None:
        device, settings = measured.device, grid_of(measured)
        self._measured = measured
        self.bank = make_bank(measured, settings, compute, group_size, chunk_size)
        num_rows = len(source.targets)
        self._tokens, self._targets, self._task = source.tokens, source.targets.to(device), source.task
        self._weights = torch.full((num_rows,), 1 / num_rows, device=device)
        generator = torch.Generator(device).manual_seed(0)
        self._noise = {
            heads: torch.rand(num_rows, measured.sizes.num_tokens, heads, generator=generator, device=device)
            for heads in self.bank.noise_heads
        }
        self._losses = torch.zeros(self.bank.num_probes, device=device)
        self._optimizer = AdamW(self.bank.stacks, settings)
        self._lrs = {setting.lr: setting.lr for setting in settings}

    @torch.no_grad()
    def gradients(self) -> None:
        losses = self.bank.compute_gradients(self._tokens, self._targets, self._weights, self._noise, self._task)
        self._losses.copy_(losses)
        for stack in self.bank.stacks:
            stack.clip_grads(PAPER.clip_norm)

    @torch.no_grad()
    def update(self) -> None:
        self._optimizer.step(self._lrs)

    def prepared(self, way: str) -> Callable[[], torch.Tensor]:
        """A step, from the initial weights on; returns the losses [P].

        Raises:
            RuntimeError: it cannot be captured.
        """
        gradients, update = self.gradients, self.update
        if way == "graph of gradients":
            gradients = self._captured(gradients)
        elif way == "graph of all":

            def whole() -> None:
                self.gradients()
                self.update()

            gradients, update = self._captured(whole), lambda: None

        def run() -> torch.Tensor:
            gradients()
            update()
            return self._losses

        return run

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of some work, weights and moments as before; without a GPU the work itself."""
        if not self._measured.on_gpu:
            return work
        kept = [{name: value.clone() for name, value in (s.values | s.statistics).items()} for s in self.bank.stacks]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # memory that lives on is made now
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        for stack, values in zip(self.bank.stacks, kept, strict=True):
            for name, value in (stack.values | stack.statistics).items():
                value.copy_(values[name])
        self._optimizer._step.zero_()  # in place: the graph has recorded where they lie
        for _, _, first, second in self._optimizer._lists.values():
            torch._foreach_zero_([*first, *second])
        return graph.replay
