"""A plan in words: what `layerbank plan` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..quantities import size
from .plan import Plan
from .plan_time import Forecast

STORE_COLUMNS = ("split", "model", "images", "missing", "to write", "files", "when complete", "store")


def store_lines(plan: Plan) -> list[list[str]]:
    """Lines under STORE_COLUMNS."""
    return [
        [
            one.split,
            one.model,
            f"{one.num_rows:,}",
            f"{one.num_missing:,}",
            size(one.written_bytes),
            f"{one.written_files:,}",
            size(one.size_bytes),
            str(one.store),
        ]
        for one in plan.stores
    ]


def token_columns(plan: Plan) -> tuple[str, ...]:
    """The table of what each level and kind takes, over all splits, when everything is there."""
    return ("model", "level", *_kinds(plan), "together")


def token_lines(plan: Plan) -> list[list[str]]:
    """Lines under `token_columns`, the last one of each model a sum."""
    lines = []
    for model in dict.fromkeys(one.model for one in plan.tokens):
        by_level: dict[str, dict[str, int]] = {}
        for one in plan.tokens:
            if one.model == model:
                by_level.setdefault(one.level, {})[one.kind] = one.size_bytes
        lines += [_token_line(model, level, kinds, plan) for level, kinds in by_level.items()]
        total = {kind: sum(kinds.get(kind, 0) for kinds in by_level.values()) for kind in _kinds(plan)}
        lines.append(_token_line(model, "all", total, plan))
    return lines


def summary(plan: Plan) -> Iterator[str]:
    """A few lines that say whether to begin."""
    if not plan.num_images and not plan.written_bytes:
        yield "nothing to do: the stores have everything"
        return
    yield (
        f"work: {plan.num_images:,} images decoded, {plan.num_passes:,} through a model, "
        f"{size(plan.written_bytes)} in {plan.written_files:,} files"
    )
    fits = "it fits" if plan.fits else f"{size(plan.needed_bytes - plan.free_bytes)} too little"
    yield f"disk: {size(plan.needed_bytes)} with headroom, {size(plan.free_bytes)} free at {plan.disk}: {fits}"
    if plan.forecast is not None:
        yield from _forecast(plan, plan.forecast)


def _forecast(plan: Plan, forecast: Forecast) -> Iterator[str]:
    beside = f" with {plan.num_workers} decoding processes" if plan.num_workers else ""
    yield (
        f"time: about {duration(forecast.total_s)} on {plan.device}{beside}: start {duration(forecast.start_s)}, "
        f"decoding {duration(forecast.decode_s)} of one process, model {duration(forecast.compute_s)}, "
        f"disk {duration(forecast.write_s)}; {forecast.limit}"
    )
    each = f" for each of {plan.num_processes} processes" if plan.num_processes > 1 else ""
    shared = f", {size(forecast.shared_bytes)} of images decoded ahead" if forecast.shared_bytes else ""
    on_gpu = "" if forecast.device_peak_bytes is None else f"; {size(forecast.device_peak_bytes)} of the GPU's own"
    yield (
        f"memory: at most {size(forecast.host_peak_bytes)}{each}{shared}{on_gpu}; {size(plan.host_free_bytes)} can be had"
    )


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(0.04), duration(75), duration(600), duration(10_000)
    ('0.0 s', '75.0 s', '10.0 min', '2.8 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _kinds(plan: Plan) -> Sequence[str]:
    return list(dict.fromkeys(one.kind for one in plan.tokens))


def _token_line(model: str, level: str, kinds: dict[str, int], plan: Plan) -> list[str]:
    cells = [size(kinds[kind]) if kind in kinds else "-" for kind in _kinds(plan)]
    return [model, level, *cells, size(sum(kinds.values()))]
