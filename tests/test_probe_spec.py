"""A probe's name says which tokens it reads and with which head."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from messages import raises

from layerbank.errors import RequestError
from layerbank.probing.probe_spec import (
    DEMO_PROBES,
    TopSettings,
    parse_probe,
    parse_probes,
    probe_names,
)
from layerbank.probing.rows.results import key_of


def test_linear_cls_reads_the_class_token_of_the_final_level() -> None:
    probe = parse_probe("linear-cls", 12)
    assert (probe.head, probe.levels, probe.kinds) == ("linear", ("final",), ("cls",))


@pytest.mark.parametrize("head", ["ridge", "logreg", "knn"])
@pytest.mark.parametrize("part", ["cls", "ap", "last", "mid", "quarterly", "all"])
def test_what_is_solved_reads_the_tokens_of_the_linear_probe(head: str, part: str) -> None:
    solved, linear = parse_probe(f"{head}-{part}", 12), parse_probe(f"linear-{part}", 12)
    assert solved.head == head
    assert (solved.levels, solved.kinds, solved.num_heads) == (linear.levels, linear.kinds, None)


@pytest.mark.parametrize("head", ["linear", "ridge", "logreg", "knn"])
@pytest.mark.parametrize(
    ("part", "attentive"),
    [
        ("grid2", "alf-grid2"),
        ("grid3-mid", "alf-grid3-mid"),
        ("patch", "aat"),
        ("patch@3", "aat@3"),
        ("patch-mid", "cae-mid"),
    ],
)
def test_flat_heads_read_cells_and_patches_as_attention_does(head: str, part: str, attentive: str) -> None:
    flat, other = parse_probe(f"{head}-{part}", 12), parse_probe(attentive, 12)
    assert (flat.head, flat.levels, flat.kinds, flat.num_heads) == (head, other.levels, other.kinds, None)
    assert flat.short_name == f"{head}-{part}"


def test_alf_is_attention_over_cls_and_ap_of_all_levels_but_block_0_with_one_head_a_token() -> None:
    probe = parse_probe("alf", 12)
    assert probe.levels == (*(f"block.{k}" for k in range(1, 12)), "final")
    assert probe.kinds == ("cls", "ap")
    assert probe.num_heads is None
    assert (probe.levels, probe.kinds, probe.head) == (
        parse_probe("attn-all", 12).levels,
        ("cls", "ap"),
        "attentive",
    )


@pytest.mark.parametrize(("depth", "num_heads"), [(12, 24), (24, 48)])
def test_grids_have_24_heads_and_48_for_depth_24(depth: int, num_heads: int) -> None:
    probe = parse_probe("alf-grid3-quarterly", depth)
    assert probe.num_heads == num_heads
    assert probe.kinds == ("cls", "grid3")
    assert len(probe.levels) == 4


@pytest.mark.parametrize(
    ("name", "num_heads"),
    [("cae", 8), ("aim", 12), ("ep", 32), ("vjepa", 12), ("map", 12), ("abmilp", None), ("simpool", None)],
)
def test_heads_of_other_studies_read_cls_and_patches_of_the_final_level_or_of_a_set(
    name: str, num_heads: int | None
) -> None:
    probe = parse_probe(name, 12)
    assert (probe.head, probe.levels, probe.kinds) == (name, ("final",), ("cls", "patch"))
    assert probe.num_heads == num_heads
    deep = parse_probe(f"{name}-mid", 24)
    assert (deep.head, deep.levels, deep.kinds) == (name, ("block.12", "final"), ("cls", "patch"))
    assert deep.num_heads == (16 if num_heads == 12 else num_heads)  # 12 does not divide 1024


@pytest.mark.parametrize("name", ["alf-embed", "scalar-mix"])
def test_heads_that_know_levels_read_cls_and_ap_of_all_of_them(name: str) -> None:
    probe, alf = parse_probe(name, 12), parse_probe("alf", 12)
    assert (probe.head, probe.levels, probe.kinds, probe.num_heads) == (name, alf.levels, alf.kinds, None)
    assert parse_probe(f"{name}-quarterly", 12).levels == ("block.3", "block.6", "block.9", "final")


def test_every_name_resolves_and_the_demo_shows_the_six_of_the_first_house() -> None:
    for name in probe_names():
        if not name.endswith("@every"):
            assert parse_probe(name, 12).name == name
        else:
            assert len(parse_probes([name], 12)) == 13
    assert DEMO_PROBES == ("linear-cls", "linear-last", "linear-all", "attn-last", "alf", "alf-grid2")
    assert set(DEMO_PROBES) <= set(probe_names())


def test_aat_reads_cls_and_every_patch_of_the_final_level_with_8_heads() -> None:
    probe = parse_probe("aat", 12)
    assert (probe.levels, probe.kinds, probe.num_heads) == (("final",), ("cls", "patch"), 8)
    assert parse_probe("aat@5", 12).levels == ("block.5",)


def test_aat_quarterly_has_the_papers_own_dropout_weight_decay_and_jitter() -> None:
    probe = parse_probe("aat-quarterly", 24)
    assert (probe.levels, probe.num_heads) == (("block.6", "block.12", "block.18", "final"), 48)
    assert probe.protocol == {"dropouts": (0.5,), "weight_decays": (1.0,), "jitter_probability": 0.9}


@pytest.mark.parametrize(("name", "kinds"), [("alf-cls", ("cls",)), ("alf-ap", ("ap",)), ("linear-mid-ap", ("ap",))])
def test_one_of_the_two_kinds_alone(name: str, kinds: tuple[str, ...]) -> None:
    assert parse_probe(name, 12).kinds == kinds


def test_every_means_one_probe_a_level_and_no_probe_twice() -> None:
    names = [probe.name for probe in parse_probes(["linear-ap@every", "linear-ap@3", "alf"], 4)]
    assert names == ["linear-ap@0", "linear-ap@1", "linear-ap@2", "linear-ap@3", "linear-ap@final", "alf"]
    assert parse_probe("linear-ap@3", 12).kinds == ("ap",)


def test_best_is_a_family_of_every_layer_set_with_and_without_grids() -> None:
    best = parse_probe("best", 12)
    sets = ("last", "mid", "quarterly", "all")
    names = [f"{stem}-{layers}" for stem in ("attn", "alf-grid2", "alf-grid4") for layers in sets]
    assert [one.name for one in best.candidates] == names
    assert best.candidates == tuple(parse_probe(name, 12) for name in names)
    assert [one.name for one in parse_probe("best-ap", 12).family] == names[:4]
    assert [one.name for one in parse_probe("best-grid2", 12).family] == names[:8]
    assert len(best.arrays) == len(set(best.arrays)) == 12 * 4
    assert {one.num_heads for one in parse_probe("best-ap-h8", 12).candidates} == {8}
    assert parse_probe("alf", 12).family == (parse_probe("alf", 12),)


def test_layer_sets_that_coincide_are_one_candidate() -> None:
    family = parse_probe("best-ap", 2).candidates
    assert len({one.levels for one in family}) == len(family) < 4


def test_a_level_the_backbone_lacks_is_refused() -> None:
    with raises("probing.no_such_level", RequestError, name="aat@12", stem="aat", level=12, last=11):
        parse_probe("aat@12", 12)


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    for name, unknown, nearest in (("liner-all", "liner-all", "linear-all"), ("allf-h8", "allf", "alf")):
        with raises("probing.unknown_probe", RequestError, name=unknown, advice=f"Did you mean {nearest!r}?"):
            parse_probe(name, 12)
    with raises("probing.unknown_probe", name="%%%"):
        parse_probe("%%%", 12)


@pytest.mark.parametrize(
    "name", ["alf", "alf-cls", "attn-mid", "alf-grid2-last", "aat", "aat@3", "aat-quarterly", "cae"]
)
def test_a_name_may_end_with_its_number_of_heads(name: str) -> None:
    plain, changed = parse_probe(name, 12), parse_probe(f"{name}-h6", 12)
    assert changed == replace(plain, name=f"{name}-h6", num_heads=6)
    assert changed != plain


def test_heads_are_counted_where_there_are_some_and_a_name_that_counts_its_own_keeps_them() -> None:
    probes = parse_probes(["linear-all", "alf", "simpool", "aat-h2", "ep@every"], 1, num_heads=(4, 8))
    assert [probe.name for probe in probes] == [
        *("linear-all", "alf-h4", "alf-h8", "simpool", "aat-h2"),
        *("ep@0-h4", "ep@0-h8", "ep@final-h4", "ep@final-h8"),
    ]
    assert [probe.num_heads for probe in probes] == [None, 4, 8, None, 2, 4, 8, 4, 8]
    assert [probe.name for probe in parse_probes(["aat@every-h2", "aat@1-h2"], 2)] == [
        "aat@0-h2",
        "aat@1-h2",
        "aat@final-h2",
    ]


@pytest.mark.parametrize("name", ["linear-all-h8", "knn-cls-h8", "scalar-mix-h8", "abmilp-h2"])
def test_a_head_without_heads_cannot_have_a_number_of_them(name: str) -> None:
    with raises("probing.head_without_heads", RequestError, name=name, stem=name.rpartition("-")[0]):
        parse_probe(name, 12)


@pytest.mark.parametrize("stem", ["linear", "ridge", "logreg", "knn"])
def test_what_reads_one_token_a_level_reads_cls_or_ap_of_one_level(stem: str) -> None:
    cls, ap = parse_probe(f"{stem}@3", 12), parse_probe(f"{stem}-ap@final", 12)
    assert (cls.head, cls.levels, cls.kinds) == (stem, ("block.3",), ("cls",))
    assert (ap.head, ap.levels, ap.kinds) == (stem, ("final",), ("ap",))


@pytest.mark.parametrize("stem", ["cae", "aim", "ep", "vjepa", "map", "abmilp", "simpool"])
def test_heads_of_other_studies_read_one_level_as_aat_does(stem: str) -> None:
    one, set_ = parse_probe(f"{stem}@7", 24), parse_probe(stem, 24)
    assert (one.levels, one.kinds) == (("block.7",), ("cls", "patch"))
    assert (one.head, one.num_heads) == (set_.head, set_.num_heads)
    assert replace(parse_probe(f"{stem}@final", 24), name=stem) == set_
    with raises("probing.no_such_level", last=23, level=24):
        parse_probe(f"{stem}@24", 24)


def test_heads_that_know_levels_have_no_form_for_one_level() -> None:
    for name in ("scalar-mix@3", "alf-embed@3", "alf@3", "attn@3"):
        with raises("probing.unknown_probe", name=name):
            parse_probe(name, 12)


@pytest.mark.parametrize("depth", [6, 12, 24])
def test_quirks_change_the_axis_of_patches_and_the_quarterly_set_of_deep_backbones_and_nothing_else(depth: int) -> None:
    for name in probe_names():
        if name.startswith("best") or name.endswith("@best"):
            continue  # families of the others
        if name.endswith("@every"):
            name = name.replace("every", "3")
        plain, quirky = parse_probe(name, depth), parse_probe(name, depth, reference_quirks=True)
        quarterly = "quarterly" in name and depth == 24
        assert quirky == replace(
            plain,
            normalize="token-axis" if "patch" in plain.kinds else "width",
            levels=("block.3", "block.6", "block.9", "final") if quarterly else plain.levels,
        )


def test_the_best_level_is_a_family_of_every_level_the_deepest_first() -> None:
    best = parse_probe("aat@best", 3)
    assert [one.name for one in best.candidates] == ["aat@final", "aat@2", "aat@1", "aat@0"]
    assert (best.name, best.levels) == ("aat@best", ("final",))
    assert [one.name for one in parse_probes(["aat@best"], 3, num_heads=(2,))[0].candidates][:2] == [
        "aat@final-h2",
        "aat@2-h2",
    ]


@pytest.mark.parametrize("stem", ["linear", "ridge", "logreg", "knn", "ridge-ap", "knn-ap"])
def test_the_best_level_of_every_head_on_one_token_is_a_family_of_its_levels(stem: str) -> None:
    best = parse_probe(f"{stem}@best", 2)
    assert best.candidates == tuple(parse_probe(f"{stem}@{level}", 2) for level in ("final", "1", "0"))
    with raises("probing.no_such_level", level=7, stem=stem):
        parse_probe(f"{stem}@7", 2)


def test_what_is_made_of_another_probe_reads_what_that_one_reads_and_names_it() -> None:
    for name in ("alf-smallest", "linear-quarterly-ap-smallest", "alf-grid2-top3", "cae-mid-top2", "aat@3-top1"):
        probe = parse_probe(name, 12)
        assert probe.derived is not None
        base = parse_probe(name.rpartition("-")[0], 12)
        assert probe.derived.base == base
        assert probe == replace(base, name=name, derived=probe.derived)
    of_heads = parse_probe("alf-top3-h8", 12)
    assert isinstance(of_heads.derived, TopSettings)
    assert (of_heads.derived.num_members, of_heads.derived.base) == (3, parse_probe("alf-h8", 12))
    assert parse_probes(["alf-top3"], 12, num_heads=(8,)) == [of_heads]
    quirky = parse_probe("aat-quarterly-top2", 24, reference_quirks=True)
    assert quirky.derived is not None
    assert quirky.derived.base == parse_probe("aat-quarterly", 24, reference_quirks=True)


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("linear-cls-smallest", "probing.levels_not_removable", {"head": "linear", "num_levels": 1}),
        ("alf-embed-smallest", "probing.levels_not_removable", {"head": "alf-embed", "num_levels": 12}),
        ("cae-mid-smallest", "probing.levels_not_removable", {"head": "cae", "num_levels": 2}),
        ("ridge-all-smallest", "probing.levels_not_removable", {"head": "ridge", "num_levels": 12}),
        ("knn-cls-top3", "probing.no_settings", {"head": "knn"}),
        ("best-top3", "probing.derived_from_choice", {}),
        ("linear@best-top3", "probing.derived_from_choice", {}),
        ("ridge@best-top3", "probing.derived_from_choice", {}),
        ("alf-top3-smallest", "probing.derived_from_choice", {}),
    ],
)
def test_what_cannot_be_derived_from_a_probe_is_refused(name: str, key: str, values: dict[str, object]) -> None:
    with raises(key, RequestError, name=name, base=name.rpartition("-")[0], **values):
        parse_probe(name, 12)


def test_an_ensemble_without_members_and_the_best_level_of_a_head_with_levels_are_no_names() -> None:
    for name in ("alf-top0", "alf@best", "alf-topmost", "nonsense-smallest", "attn-{layers}"):
        with raises("probing.unknown_probe", RequestError):
            parse_probe(name, 12)


# -- names and keys stay what they are -------------------------------------------------------------------------------

GOLDEN = [
    line.split("\t") for line in (Path(__file__).parent / "golden" / "probe_specs.tsv").read_text().splitlines()[1:]
]


@pytest.mark.parametrize("column", range(1, len(GOLDEN[0])), ids=GOLDEN[0][1:])
def test_every_name_means_what_it_meant_when_keys_were_first_made_of_it(column: int) -> None:
    depth, quirks = int(GOLDEN[0][column].rstrip("q")), GOLDEN[0][column].endswith("q")
    digests = {row[0]: row[column] for row in GOLDEN[1:]}
    listed = {name.replace("@every", "@0") for name in probe_names()}
    assert listed <= set(digests)
    found = {name: key_of(asdict(parse_probe(name, depth, reference_quirks=quirks)))[:12] for name in digests}
    assert found == digests


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("alf", "alf"),
        ("attn-all", "alf"),
        ("attn-all-ap", "alf-ap"),
        ("attn-mid", "attn-mid"),
        ("alf-grid3-all", "alf-grid3"),
        ("aat@final", "aat"),
        ("aat@007", "aat@7"),
        ("aat-quarterly-h24", "aat-quarterly"),
        ("cae-last-h8", "cae"),
        ("cae-h4", "cae-h4"),
        ("simpool@final", "simpool"),
        ("scalar-mix-all", "scalar-mix"),
        ("linear@final", "linear-cls"),
        ("knn-last-ap", "knn-ap"),
        ("attn-all-h8-top3", "alf-h8-top3"),
        ("alf-top3-h8", "alf-h8-top3"),
        ("attn-all-smallest", "alf-smallest"),
        ("linear@best", "linear@best"),
    ],
)
def test_aliases_have_one_canonical_short_name(name: str, short: str) -> None:
    probe = parse_probe(name, 12)
    assert probe.name == name
    assert probe.short_name == parse_probe(short, 12).short_name == short
    if not probe.candidates and not probe.derived:
        assert replace(parse_probe(short, 12), name=name) == probe


def test_the_short_name_of_a_quirky_probe_is_that_of_its_name() -> None:
    assert parse_probe("attn-quarterly", 24, reference_quirks=True).short_name == "attn-quarterly"
    assert parse_probe("aat@final", 24, reference_quirks=True).short_name == "aat"
