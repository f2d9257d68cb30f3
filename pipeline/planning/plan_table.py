"""A plan as text: what `layerbank plan` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..quantities import counted, duration, size
from .calibrate import Estimate
from .plan import Plan

SPLIT_COLUMNS = ("split", "model", "rows", "in the cache", "to compute", "to write", "files", "stores")


def split_lines(plan: Plan) -> list[list[str]]:
    """Return the lines under SPLIT_COLUMNS."""
    return [
        [
            one.split,
            one.model,
            f"{one.num_rows:,}",
            f"{one.num_found:,}",
            f"{one.num_missing:,}",
            size(one.written_bytes),
            f"{one.written_files:,}",
            "\n".join(one.stores) or "-",
        ]
        for one in plan.splits
    ]


def token_columns(plan: Plan) -> tuple[str, ...]:
    """Columns of the table of what is to be written of each level and kind, over all splits."""
    return ("model", "level", *_kinds(plan), "together")


def token_lines(plan: Plan) -> list[list[str]]:
    """Return the lines under `token_columns`, the last one of each model a sum."""
    lines = []
    for model in dict.fromkeys(one.model for one in plan.tokens):
        by_level: dict[str, dict[str, int]] = {}
        for one in plan.tokens:
            if one.model == model:
                by_level.setdefault(one.level, {})[one.kind] = one.written_bytes
        lines += [_token_line(model, level, kinds, plan) for level, kinds in by_level.items()]
        total = {kind: sum(kinds.get(kind, 0) for kinds in by_level.values()) for kind in _kinds(plan)}
        lines.append(_token_line(model, "all", total, plan))
    return lines


def summary(plan: Plan) -> Iterator[str]:
    """Yield a few lines that say whether to begin."""
    if not plan.num_images and not plan.written_bytes:
        yield "nothing to do: the cache has everything"
        return
    unknown = {(one.dataset, one.split): one.num_unknown for one in plan.splits}
    if num_unknown := sum(unknown.values()):
        be = "is new to the content index and counts" if num_unknown == 1 else "are new to the content index and count"
        yield f"unknown: {counted(num_unknown, 'image')} {be} as missing; `layerbank extract` hashes what is new"
    yield (
        f"work: {plan.num_images:,} images decoded, {plan.num_passes:,} through a model, "
        f"{size(plan.written_bytes)} in {plan.written_files:,} files"
    )
    fits = "it fits" if plan.fits else f"{size(plan.needed_bytes - plan.free_bytes)} too little"
    yield f"disk: {size(plan.needed_bytes)} with headroom, {size(plan.free_bytes)} free at {plan.disk}: {fits}"
    if plan.forecast is not None:
        yield from _time_and_memory(plan, plan.forecast)


def _time_and_memory(plan: Plan, estimate: Estimate) -> Iterator[str]:
    beside = f" with {plan.num_workers} decoding processes" if plan.num_workers else ""
    yield (
        f"time: about {duration(estimate.total_s)} on {plan.device}{beside}, estimated from {estimate.num_sampled} images: "
        f"start {duration(estimate.start_s)}, decoding {duration(estimate.decode_s)} in one process, "
        f"model {duration(estimate.compute_s)}, disk {duration(estimate.write_s)}; {estimate.limit}"
    )
    each = f" for each of {plan.num_processes} processes" if plan.num_processes > 1 else ""
    shared = f", {size(estimate.shared_bytes)} of images decoded ahead" if estimate.shared_bytes else ""
    on_gpu = "" if estimate.device_peak_bytes is None else f"; {size(estimate.device_peak_bytes)} on the GPU"
    yield (
        f"memory: at most {size(estimate.host_peak_bytes)}{each}{shared}{on_gpu}; "
        f"{size(plan.host_free_bytes)} available"
    )


def _kinds(plan: Plan) -> Sequence[str]:
    return list(dict.fromkeys(one.kind for one in plan.tokens))


def _token_line(model: str, level: str, kinds: dict[str, int], plan: Plan) -> list[str]:
    cells = [size(kinds[kind]) if kind in kinds else "-" for kind in _kinds(plan)]
    return [model, level, *cells, size(sum(kinds.values()))]
