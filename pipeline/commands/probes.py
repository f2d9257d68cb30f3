"""`layerbank probes` and `layerbank attention`: list probes, show the attention map of a trained one."""

from __future__ import annotations

from pathlib import Path

import click

from . import options as shared


@click.command()
@click.argument("pattern", default="*")
@click.option("--depth", type=click.IntRange(1), default=12, show_default=True, help="Blocks of the backbone.")
@click.option("--embed-dim", type=click.IntRange(1), default=768, show_default=True, help="Width of a token.")
@click.option("--num-patches", type=click.IntRange(1), default=196, show_default=True, help="Patches of an image.")
@click.option("--num-classes", type=click.IntRange(1), default=10, show_default=True, help="Classes of the data.")
@click.option("--reference-quirks", is_flag=True, help="List them as `layerbank probe` reads them with this option.")
@shared.as_json
def probes(
    pattern: str,
    depth: int,
    embed_dim: int,
    num_patches: int,
    num_classes: int,
    reference_quirks: bool,
    as_json: bool,
) -> None:
    """List the names for `layerbank probe --probe`: tokens, head and number of parameters of each.

    PATTERN is a name, with * for anything. Any number may replace the 2 of a grid; every means one probe a level, best the level
    that is best on validation. The name of a head with attention heads may end with -h8 for 8 of them. Every trained probe has an
    ensemble of its best settings, -top5 or another number, and every linear or attentive probe of several levels a -smallest, for
    which the numbers are upper bounds. Heads of plug-ins are listed too; those that cannot be imported are named on standard error.

    \b
    layerbank probes 'alf*' --depth 24 --embed-dim 1024 --num-patches 256
    """
    from layerbank.probes import HEADS

    from ..console import print_json, print_table
    from ..probing.probe_sizes import SIZE_COLUMNS, describe_probes, size_table

    described = describe_probes(
        pattern,
        depth=depth,
        embed_dim=embed_dim,
        num_patches=num_patches,
        num_classes=num_classes,
        reference_quirks=reference_quirks,
    )
    if as_json:
        print_json(described)
    else:
        title = f"depth {depth}, width {embed_dim}, {num_patches} patches, {num_classes} classes"
        print_table(SIZE_COLUMNS, size_table(described), title=title)
    shared.warn_of_plugins("head", HEADS.broken)


@click.command()
@click.argument("folder", type=shared.FOLDER)
@click.option("--heads", is_flag=True, help="Show one line a head, and draw FOLDER/attention-heads.png.")
@shared.as_json
def attention(folder: Path, heads: bool, as_json: bool) -> None:
    """Show the attention of a trained probe on the test images: shares by kind and depth, entropy, mass-80.

    FOLDER is the folder that `layerbank probe` saved for an attentive probe: RUNS/.../NAME-KEY. Nothing is computed again.

    \b
    layerbank attention runs/photos/STORE/alf-1a2b3c4d --heads
    """
    from ..console import print_json, print_table
    from ..probing.attention import draw_heads, head_table, number_table, read_attention

    kept = read_attention(folder)
    picture = draw_heads(folder, kept) if heads else None
    if as_json:
        print_json(kept)
        return
    title = f"{kept['num_samples']:,} images, {kept['num_heads']} heads, {kept['num_tokens']} tokens; {folder}"
    print_table(*number_table(kept), title=title)
    if picture is not None:
        print_table(*head_table(kept), title=f"heads, by the depth they attend to; {picture}")
