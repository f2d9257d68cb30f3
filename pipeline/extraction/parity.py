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

import torch
from torch import Tensor

from layerbank.cache import Gap, ModelStores, storage_dtype_of

from ..data.selected_source import SelectedSource
from ..data.splits.split_rows import SplitRows
from ..errors import RequestError, WorkError
from ..events import OnEvent, ParityMeasured, StoresIgnored, ignore
from ..models.backbone import Backbone
from ..models.request import ModelRequest
from ..models.rounding import float_tokens, round_tokens
from .extract import ExtractConfig, Extraction
from .overflow import first_images, needs_bfloat16, reference_opener, run_model
from .parity_levels import Parity, parity_by_level, rounded, rounded_cosine

SMALLEST = torch.finfo(torch.float32).tiny  # a channel that is all zeros is measured against this


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The model to run, and its parity.

    Attributes:
        request, backbone: as requested, or in bfloat16.
        parity: split -> store -> path of an array -> parity, of arrays that are new to the store.
        stores: the stores of the model.
    """

    request: ModelRequest
    backbone: Backbone
    parity: Mapping[str, Mapping[Path, Mapping[str, Parity]]]
    stores: ModelStores


def settle(
    request: ModelRequest,
    backbone: Backbone,
    splits: Sequence[SplitRows],
    config: ExtractConfig,
    cache_root: Path,
    *,
    threshold: float | None = None,
    stores: ModelStores | None = None,
    on_event: OnEvent = ignore,
) -> Settled:
    """Compare the first images of each split with a float32 run, and choose bfloat16 where float16 overflows.

    A split of which the cache has rows in float16 stays in float16: what overflows there later is counted and reported. If any
    other split overflows, all of them are computed in bfloat16.

    Args:
        request, backbone: the requested model, and the same opened.
        splits: the rows to extract.
        config: what is stored, and how.
        cache_root: the folder of all stores.
        threshold: minimum cosine similarity of a token, 0 to 1; with it saturated and non-finite values are errors too.
        stores: the stores of the model, if they were read just now.
        on_event: callback for what was measured.

    Raises:
        WorkError: below the threshold.
        RequestError: the threshold is out of range.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise RequestError("extraction.threshold_not_a_cosine", value=threshold)
    open_reference = reference_opener(request, backbone)
    extraction = Extraction(backbone=backbone, config=config, cache_root=cache_root)
    stores = stores or extraction.read_stores()
    gaps = [extraction.find_gaps(rows, stores) for rows in splits]
    is_float16 = backbone.precision == "float16"
    if is_float16 and needs_bfloat16(extraction, open_reference, splits, gaps, stores, on_event):
        request = replace(request, precision="bfloat16")
        backbone = request.open(str(backbone.device))
        extraction = replace(extraction, backbone=backbone)
        stores = extraction.read_stores()
        gaps = [extraction.find_gaps(rows, stores) for rows in splits]
    if stores.unreadable:
        on_event(StoresIgnored(backbone=backbone.model_id, reasons=stores.unreadable))
    parity: dict[str, Mapping[Path, Mapping[str, Parity]]] = {}
    for rows, found in zip(splits, gaps, strict=True):
        # each store on its own images, so that its record does not depend on what else is written
        measured = {gap.path: _measure(extraction, open_reference, rows, gap, on_event) for gap in found.gaps}
        for one in filter(None, measured.values()):
            on_event(_measured_event(backbone, rows.source.split, config.storage_dtype, one))
        if threshold is not None:
            new = [pair for one in measured.values() for pair in one.items()]
            _refuse_below(threshold, backbone, rows, [*_recorded(extraction, rows, stores), *new])
        parity[rows.source.split] = measured
    return Settled(request=request, backbone=backbone, parity=parity, stores=stores)


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
        "cosine_min": rounded_cosine(float(cosine.min())),
        "cosine_mean": rounded_cosine(float(cosine.mean())),
        "max_relative_error": rounded(float(error.max())),
        "nonfinite": int((~x_finite).sum()),
        "reference_nonfinite": int((~r_finite).sum()),
    }


def _measure(
    extraction: Extraction,
    open_reference: Callable[[], Backbone],
    rows: SplitRows,
    gap: Gap,
    on_event: OnEvent,
) -> dict[str, Parity]:
    """Return path of an array -> parity, of arrays without a record; empty if there are none, or none of the images can be read."""
    backbone, storage_dtype = extraction.backbone, extraction.config.storage_dtype
    known = _parity_of(gap)
    arrays = [array for array in extraction.arrays if array.name not in known]
    images = first_images(backbone, _first_rows(rows, gap)) if arrays else None
    if images is None:
        return {}
    levels, kinds = (list(dict.fromkeys(getattr(one, name) for one in arrays)) for name in ("level", "kind"))
    tokens = run_model(backbone, images, levels, kinds, on_event)
    exact = tokens if open_reference() is backbone else run_model(open_reference(), images, levels, kinds, on_event)
    parity = {}
    for array in arrays:
        dtype = storage_dtype_of(storage_dtype, array.kind)
        rounded = round_tokens(tokens[array.level][array.kind], dtype)
        compared = compare_tokens(float_tokens(rounded.values, dtype), exact[array.level][array.kind].cpu())
        parity[array.name] = {"num_images": len(images), "saturated": rounded.num_saturated, **compared}
    return parity


def _first_rows(rows: SplitRows, gap: Gap) -> SelectedSource:
    """The centre views among the first rows of a gap."""
    chosen = gap.wanted[gap.wanted >= 0]
    chosen = chosen[chosen % rows.rows_an_image == 0] // rows.rows_an_image
    chosen = chosen if len(chosen) else gap.wanted[:1] // rows.rows_an_image
    return SelectedSource(rows.centre(), chosen, [rows.source.ids[row] for row in chosen.tolist()])


def _parity_of(gap: Gap) -> Mapping[str, Parity]:
    """Path of an array -> its parity in the store; empty for an array of an older store that has none."""
    if gap.files is None:
        return {}
    header = gap.files.header
    return {name: dict(header.parity.get(name, {})) for name in header.arrays}


def _recorded(extraction: Extraction, rows: SplitRows, stores: ModelStores) -> list[tuple[str, Parity]]:
    """Path of an array and its parity, of every store that holds some of the rows and is not made anew."""
    names = {array.name for array in extraction.arrays}
    replaced = extraction.replaced(stores, rows) if extraction.config.overwrite else ()
    return [
        (name, dict(parity))
        for files in stores.stores
        if files.path not in replaced and rows.wanted.are_in(files.rows).any()
        for name, parity in files.header.parity.items()
        if name in names
    ]


def _refuse_below(threshold: float, backbone: Backbone, rows: SplitRows, parity: Sequence[tuple[str, Parity]]) -> None:
    wrong = [
        (name, one) for name, one in parity if one["cosine_min"] < threshold or one["saturated"] or one["nonfinite"]
    ]
    if wrong:
        name, one = min(wrong, key=lambda pair: float(pair[1]["cosine_min"]))
        raise WorkError(
            "extraction.below_parity_threshold",
            model=backbone.model_id,
            dataset=rows.source.name,
            split=rows.source.split,
            threshold=threshold,
            num_wrong=len(wrong),
            num_arrays=len(parity),
            array=name,
            cosine=one["cosine_min"],
            num_saturated=one["saturated"],
            num_nonfinite=one["nonfinite"],
            advice=_what_helps(backbone.precision, [parity for _, parity in wrong]),
        )


def _what_helps(precision: str, wrong: Sequence[Parity]) -> str:
    """What can bring arrays above the threshold: not storing them otherwise, where the model itself gave NaN.

    >>> _what_helps("float32", [{"nonfinite": 2, "reference_nonfinite": 2}])
    'The model gives such values in float32 too: look for NaN in its weights.'
    >>> _what_helps("float16", [{"nonfinite": 2, "reference_nonfinite": 0}])
    'Use --precision bfloat16 or float32.'
    """
    if any(one["reference_nonfinite"] for one in wrong):
        return "The model gives such values in float32 too: look for NaN in its weights."
    options = {"float16": ["--precision bfloat16 or float32"], "bfloat16": ["--precision float32"]}.get(precision, [])
    if not any(one["nonfinite"] for one in wrong):
        options = [*options, "--storage-dtype float32"]
    return f"Use {', or '.join(options)}."


def _measured_event(backbone: Backbone, split: str, storage_dtype: str, parity: Mapping[str, Parity]) -> ParityMeasured:
    levels = parity_by_level(parity)
    farthest = min(levels, key=lambda level: float(levels[level]["cosine_min"]))
    largest = max(levels, key=lambda level: float(levels[level]["max_relative_error"]))
    return ParityMeasured(
        backbone=backbone.model_id,
        split=split,
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
