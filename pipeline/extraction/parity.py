"""Parity: how far the stored tokens are from those of a float32 run of the same images, measured before a store is made.

The first images of a split are run twice, as requested and in float32, and what would be stored of them is compared token by token.
A float16 model that overflows is replaced by a bfloat16 one. Where the model runs in float32 anyway, what is measured is the
storage rounding error.

Knows nothing of terminals or of how stores are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerbank.cache import read_store_info, storage_dtype_of

from ..data.sources import ImageSource
from ..errors import RequestError, WorkError
from ..events import OnEvent, ParityMeasured, ignore
from ..models.backbone import Backbone
from ..models.request import ModelRequest
from ..models.rounding import float_tokens, round_tokens
from .extract import spec_of
from .overflow import OpenSplit, first_images, needs_bfloat16, reference_opener, run_model

SMALLEST = torch.finfo(torch.float32).tiny  # a channel that is all zeros is measured against this

Parity = dict[str, Any]
"""The parity of one array, as its store keeps it; cache/README.md lists the keys."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The model to run, and its parity.

    Attributes:
        request, backbone: as requested, or in bfloat16.
        parity: split -> array name -> parity, of arrays that are new to their store.
    """

    request: ModelRequest
    backbone: Backbone
    parity: Mapping[str, Mapping[str, Parity]]


def settle(
    request: ModelRequest,
    backbone: Backbone,
    sources: Sequence[ImageSource],
    arrays: Sequence[tuple[str, str]],
    *,
    storage_dtype: str,
    cache_root: Path,
    open_split: OpenSplit,
    overwrite: bool = False,
    threshold: float | None = None,
    on_event: OnEvent = ignore,
) -> Settled:
    """Compare the first images of each split with a float32 run, and choose bfloat16 where float16 overflows.

    Splits whose float16 store exists stay in float16: what overflows there later is counted and reported. If any other split
    overflows, all of them are computed in bfloat16.

    Args:
        request, backbone: the requested model, and the same opened.
        sources: the splits to extract.
        arrays: the (level, kind) pairs to extract.
        storage_dtype, cache_root: the dtype of the stored tokens, as in a store's spec, and the folder of all stores.
        open_split: opens another split of the same data.
        overwrite: whether existing stores will be made anew.
        threshold: minimum cosine similarity of a token, 0 to 1; with it saturated and non-finite values are errors too.
        on_event: callback for what was measured.

    Raises:
        WorkError: below the threshold.
        RequestError: the threshold is out of range, or the precision differs from that of the stores of other splits.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise RequestError("extraction.threshold_not_a_cosine", value=threshold)
    open_reference = reference_opener(request, backbone)
    if backbone.precision == "float16" and needs_bfloat16(
        backbone,
        open_reference,
        sources,
        storage_dtype=storage_dtype,
        cache_root=cache_root,
        open_split=open_split,
        overwrite=overwrite,
        on_event=on_event,
    ):
        request = replace(request, precision="bfloat16")
        backbone = request.open(str(backbone.device))
    parity: dict[str, Mapping[str, Parity]] = {}
    for source in sources:
        store = spec_of(backbone, source, storage_dtype).store_path(cache_root)
        recorded = {} if overwrite else _recorded(store)
        new = [pair for pair in arrays if _name(*pair) not in recorded]
        measured = _measure(backbone, open_reference, source, new, storage_dtype, on_event) if new else {}
        if measured:
            on_event(_measured_event(backbone, source, storage_dtype, measured))
        if threshold is not None:
            known = {name: one for name, one in recorded.items() if one}
            _refuse_below(threshold, backbone, source, known | measured)
        parity[source.split] = measured
    return Settled(request=request, backbone=backbone, parity=parity)


def compare_tokens(stored: Tensor, reference: Tensor) -> Parity:
    """Compare tokens with those of a float32 run: cosine similarities and relative errors.

        cosine of a token t = <x_t, r_t> / (|x_t| |r_t|)
        relative error of its channel c = |x_tc - r_tc| / max(|r_tc|, sqrt(mean_t r_tc^2))

    A massive activation decides the cosine of its token alone, hence the second number: there each channel has its own scale.

    Args:
        stored: [..., D] x, in any float dtype.
        reference: [..., D] r, float32.

    Returns:
        `cosine_min`, `cosine_mean`, `max_relative_error`, `nonfinite`, `reference_nonfinite`.

    >>> compare_tokens(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))["cosine_min"]
    0.0
    """
    x, r = (values.reshape(-1, values.shape[-1]).double() for values in (stored, reference))
    x_finite, r_finite = torch.isfinite(x), torch.isfinite(r)
    both = x_finite & r_finite
    whole = both.all(1)
    x0, r0 = torch.where(both, x, 0.0), torch.where(both, r, 0.0)
    x_norm, r_norm = x0.norm(dim=1), r0.norm(dim=1)
    norms = x_norm * r_norm
    cosine = torch.where(norms > 0, (x0 * r0).sum(1) / norms.clamp_min(SMALLEST), ((x_norm + r_norm) == 0).double())
    cosine = torch.where(whole, cosine.clamp(-1, 1), 0.0)
    channel = (r0.square().sum(0) / both.sum(0).clamp_min(1)).sqrt()
    error = (x0 - r0).abs() / torch.maximum(r0.abs(), channel).clamp_min(SMALLEST)
    return {
        "cosine_min": _cosine(float(cosine.min())),
        "cosine_mean": _cosine(float(cosine.mean())),
        "max_relative_error": _short(float(error.max())),
        "nonfinite": int((~x_finite).sum()),
        "reference_nonfinite": int((~r_finite).sum()),
    }


def parity_by_level(parity: Mapping[str, Parity]) -> dict[str, Parity]:
    """Summarise the parity of the arrays of each level: the worst value, the mean of the means, the sums.

    Args:
        parity: array name -> parity.
    """
    levels: dict[str, list[Parity]] = {}
    for name, one in parity.items():
        levels.setdefault(name.split("/")[1], []).append(one)
    return {
        level: {
            "cosine_min": min(one["cosine_min"] for one in ones),
            "cosine_mean": _cosine(sum(one["cosine_mean"] for one in ones) / len(ones)),
            "max_relative_error": max(one["max_relative_error"] for one in ones),
            **{key: sum(one[key] for one in ones) for key in ("saturated", "nonfinite", "reference_nonfinite")},
        }
        for level, ones in levels.items()
    }


def _measure(
    backbone: Backbone,
    open_reference: Callable[[], Backbone],
    source: ImageSource,
    arrays: Sequence[tuple[str, str]],
    storage_dtype: str,
    on_event: OnEvent,
) -> dict[str, Parity]:
    """Return array name -> parity; empty if none of the first images can be read."""
    levels, kinds = (list(dict.fromkeys(names)) for names in zip(*arrays, strict=True))
    for level, kind in arrays:
        backbone.row_shape(level, kind)  # refuses what the backbone lacks
    images = first_images(backbone, source)
    if images is None:
        return {}
    tokens = run_model(backbone, images, levels, kinds, on_event)
    exact = tokens if open_reference() is backbone else run_model(open_reference(), images, levels, kinds, on_event)
    parity = {}
    for level, kind in arrays:
        dtype = storage_dtype_of(storage_dtype, kind)
        rounded = round_tokens(tokens[level][kind], dtype)
        compared = compare_tokens(float_tokens(rounded.values, dtype), exact[level][kind].cpu())
        parity[_name(level, kind)] = {"num_images": len(images), "saturated": rounded.num_saturated, **compared}
    return parity


def _recorded(store: Path) -> dict[str, Parity | None]:
    """Return array name -> the parity that its store records, None for arrays without a record."""
    if not store.exists():
        return {}
    info = read_store_info(store)
    if info.header is None:  # the writer reports why
        return {}
    parity = info.header.parity
    return {name: dict(parity[name]) if name in parity else None for name in info.header.arrays}


def _refuse_below(threshold: float, backbone: Backbone, source: ImageSource, parity: Mapping[str, Parity]) -> None:
    wrong = [
        (name, one)
        for name, one in parity.items()
        if one["cosine_min"] < threshold or one["saturated"] or one["nonfinite"]
    ]
    if wrong:
        name, one = min(wrong, key=lambda pair: float(pair[1]["cosine_min"]))
        raise WorkError(
            "extraction.below_parity_threshold",
            model=backbone.model_id,
            dataset=source.name,
            split=source.split,
            threshold=threshold,
            num_wrong=len(wrong),
            num_arrays=len(parity),
            array=name,
            cosine=one["cosine_min"],
            num_saturated=one["saturated"],
            num_nonfinite=one["nonfinite"],
        )


def _measured_event(
    backbone: Backbone, source: ImageSource, storage_dtype: str, parity: Mapping[str, Parity]
) -> ParityMeasured:
    levels = parity_by_level(parity)
    farthest = min(levels, key=lambda level: float(levels[level]["cosine_min"]))
    largest = max(levels, key=lambda level: float(levels[level]["max_relative_error"]))
    return ParityMeasured(
        backbone=backbone.model_id,
        split=source.split,
        num_images=max(one["num_images"] for one in parity.values()),
        compute_dtype=backbone.precision,
        storage_dtype=storage_dtype,
        cosine_min=levels[farthest]["cosine_min"],
        cosine_level=farthest,
        max_relative_error=levels[largest]["max_relative_error"],
        error_level=largest,
        num_saturated=sum(one["saturated"] for one in levels.values()),
        num_nonfinite=sum(one["nonfinite"] for one in levels.values()),
    )


def _name(level: str, kind: str) -> str:
    return f"tokens/{level}/{kind}"


def _short(value: float) -> float:
    """Round to three digits: further ones depend on the machine, and a store's bytes should not."""
    return float(f"{value:.3g}")


def _cosine(value: float) -> float:
    return round(1 - _short(1 - value), 12)
