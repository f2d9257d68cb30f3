"""`layerbank models` and `layerbank datasets`: the values of --model and --data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from . import options as shared


@click.command()
@click.argument("pattern", required=False)
@shared.as_json
def models(pattern: str | None, as_json: bool) -> None:
    """List the values of --model: groups of models, or with PATTERN each model whose name contains or matches it.

    Nothing is downloaded: models are built without memory for their weights. Weights are chosen by a tag, timm/NAME.TAG or
    open_clip/NAME/TAG.

    \b
    layerbank models
    layerbank models 'vit_*_dinov3'
    layerbank models open_clip/ViT-B-16-quickgelu --json
    """
    from ..models.families import MODEL_FAMILIES

    if pattern is None:
        _list_groups(as_json)
    else:
        _list_models(pattern, as_json)
    shared.warn_of_plugins("model family", MODEL_FAMILIES.broken)


def _list_groups(as_json: bool) -> None:
    from ..console import print_json, print_lines, print_table
    from ..models.families import MODEL_FAMILIES
    from ..models.listing import describe, group_of, model_groups, model_names

    count = Counter(group_of(name).name for name in model_names())
    groups = [(group, describe(group.example)) for group in model_groups()]
    if as_json:
        print_json(
            [
                {
                    "family": group.name,
                    "num_models": count[group.name],
                    "example": group.example,
                    "note": group.note,
                    "facts": asdict(facts),
                }
                for group, facts in groups
            ]
        )
        return
    rows = [
        (
            group.name,
            group.example,
            facts.tokens,
            group.note,
            str(count[group.name]),
            str(facts.depth + 1),
            facts.widths,
        )
        for group, facts in groups
    ]
    print_table(("family", "example", "tokens", "note", "models", "levels", "width"), rows, num_left=4)
    others = ", ".join(family.form for family in MODEL_FAMILIES.values() if not family.groups)
    print_lines(
        [
            "",
            f"Also {others}, and --weights FILE for any of these.",
            "Hierarchical, windowed and convolutional models (Swin, Hiera, SAM, ConvNeXt, ...) are refused: they have no "
            "sequence of tokens that goes through all blocks.",
        ]
    )


def _list_models(pattern: str, as_json: bool) -> None:
    from ..console import print_json, print_lines, print_table
    from ..errors import RequestError
    from ..models.listing import describe, match_models

    found, refused = [], {}
    for name in match_models(pattern):
        try:
            found.append(describe(name))
        except RequestError as error:
            refused[name] = f"{error.where}: expected {error.expected}, got {error.got}"
    if as_json:
        print_json({"models": [asdict(facts) | {"tokens": facts.tokens} for facts in found], "refused": refused})
        return
    rows = []
    for facts in found:
        more = f" and {len(facts.weights) - 3} more" if len(facts.weights) > 3 else ""
        rows.append(
            (
                facts.model,
                facts.family,
                facts.tokens,
                ", ".join(facts.taps),
                ", ".join(facts.weights[:3]) + more,
                "x".join(map(str, facts.image_size)),
                str(facts.depth + 1),
                facts.widths,
                f"{facts.num_parameters / 1e6:,.1f} M",
            )
        )
    columns = ("model", "family", "tokens", "taps", "weights", "pixels", "levels", "width", "parameters")
    print_table(columns, rows, num_left=5)
    print_lines(f"refused: {text}" for text in refused.values())


@click.command()
@shared.as_json
def datasets(as_json: bool) -> None:
    """List the values of --data: kinds of address with an example each, and the data sets that come inside packages.

    \b
    layerbank datasets
    """
    from ..console import print_json, print_lines, print_table
    from ..data.demos.demo_sets import DEMOS
    from ..data.sources import SOURCES

    if as_json:
        schemes = [
            {"scheme": name, "form": source.form, "meaning": source.meaning, "example": source.example}
            for name, source in SOURCES.items()
        ]
        demos = [
            {
                "data": f"demo:{name}",
                "meaning": demo.meaning,
                "package": demo.package,
                "num_classes": len(demo.class_names),
                "sizes": dict(demo.sizes),
            }
            for name, demo in DEMOS.items()
        ]
        print_json({"schemes": schemes, "demo": demos})
    else:
        rows = [(source.form, source.example, source.meaning) for source in SOURCES.values()]
        print_table(("form", "example", "what"), rows, num_left=3)
        print_lines([""])
        print_table(
            ("data", "what", "package", "train", "test"),
            [
                (f"demo:{name}", demo.meaning, demo.package, *(f"{demo.sizes[split]:,}" for split in ("train", "test")))
                for name, demo in DEMOS.items()
            ],
            num_left=3,
        )
    shared.warn_of_plugins("data source", SOURCES.broken)
