"""`layerbank models` and `layerbank datasets`: what can be given to --model and --data."""

from __future__ import annotations

from dataclasses import asdict

import click

_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


@click.command()
@click.argument("pattern", required=False)
@_json
def models(pattern: str | None, as_json: bool) -> None:
    """List what --model takes: families, or with PATTERN each model whose name contains or matches it.

    Nothing is downloaded: models are built without memory for their weights and looked at. Weights are chosen by a tag,
    timm/NAME.TAG or open_clip/NAME/TAG.

    \b
    layerbank models
    layerbank models 'vit_*_dinov3'
    layerbank models open_clip/ViT-B-16-quickgelu --json
    """
    from ..console import print_json, print_lines, print_table
    from ..errors import RequestError
    from ..models.listing import FAMILIES, describe, family_of, match_models, model_names

    if pattern is None:
        count: dict[str, int] = {}
        for name in model_names():
            count[family_of(name).name] = count.get(family_of(name).name, 0) + 1
        families = [(family, describe(family.example)) for family in FAMILIES]
        if as_json:
            print_json(
                [
                    {
                        "family": family.name,
                        "num_models": count[family.name],
                        "example": family.example,
                        "note": family.note,
                    }
                    | {"facts": asdict(facts)}
                    for family, facts in families
                ]
            )
            return
        print_table(
            ("family", "example", "tokens", "note", "models", "levels", "width"),
            [
                (
                    family.name,
                    family.example,
                    facts.tokens,
                    family.note,
                    str(count[family.name]),
                    str(facts.depth + 1),
                    facts.widths,
                )
                for family, facts in families
            ],
            num_left=4,
        )
        print_lines(
            [
                "",
                "Also hf-hub:ORG/REPO (of timm or open_clip), torchhub:REPO:ENTRY, and --weights FILE for any of these.",
                "Hierarchical, windowed and convolutional models (Swin, Hiera, SAM, ConvNeXt, ...) are refused: they have no "
                "sequence of tokens that goes through all blocks.",
            ]
        )
        return
    found, refused = [], {}
    for name in match_models(pattern):
        try:
            found.append(describe(name))
        except RequestError as error:
            refused[name] = f"{error.where}: expected {error.expected}, got {error.got}"
    if as_json:
        print_json({"models": [asdict(facts) | {"tokens": facts.tokens} for facts in found], "refused": refused})
        return
    print_table(
        ("model", "family", "tokens", "taps", "weights", "pixels", "levels", "width", "parameters"),
        [
            (
                facts.model,
                facts.family,
                facts.tokens,
                ", ".join(facts.taps),
                ", ".join(facts.weights[:3])
                + (f" and {len(facts.weights) - 3} more" if len(facts.weights) > 3 else ""),
                "x".join(map(str, facts.image_size)),
                str(facts.depth + 1),
                facts.widths,
                f"{facts.num_parameters / 1e6:,.1f} M",
            )
            for facts in found
        ],
        num_left=5,
    )
    print_lines(f"refused: {text}" for text in refused.values())


@click.command()
@_json
def datasets(as_json: bool) -> None:
    """List what --data takes: kinds of address with an example each, and the data sets that come inside packages.

    \b
    layerbank datasets
    """
    from ..console import print_json, print_lines, print_table
    from ..data.demo_sets import DEMOS
    from ..data.sources import SCHEMES

    schemes = [
        {"scheme": name, "form": scheme.form, "meaning": scheme.meaning, "example": scheme.example}
        for name, scheme in SCHEMES.items()
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
    if as_json:
        print_json({"schemes": schemes, "demo": demos})
        return
    rows = [(one["form"], one["example"], one["meaning"]) for one in schemes]
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
