"""Identity of a store: what it depends on, and what a spec refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import raises
from token_stores import make_spec

from layerbank.cache import ArraySpec, StoreSpec, FieldDifference, SpecError, kinds_with_own_dtype, storage_dtypes_text
from layerbank.cache.spec import IDENTITY_FIELDS, LABEL_FIELDS, STORAGE_DTYPES, path_name

OTHER: dict[str, Any] = {
    "architecture": "timm/vit_small img_size=32",
    "weights": "ffffffffffffffff",
    "tap": "block",
    "token_rule": "2",
    "transform": "resize 64",
    "compute_dtype": "bfloat16",
    "storage_dtype": "float32",
    "manifest": "ffffffffffffffff",
    "num_rows": 7,
    "backbone": "timm/vit_small",
    "dataset": "sketches",
    "split": "test",
}


def test_the_fingerprint_of_a_spec_never_changes() -> None:
    assert make_spec().fingerprint == "9215b1f9a0d9ab6936e102be4fa1db1642178ebfafa3da9494a2682ca20afacc"


@pytest.mark.parametrize("field", IDENTITY_FIELDS)
def test_every_identity_field_is_in_the_fingerprint_and_in_the_difference(field: str) -> None:
    spec, other = make_spec(), replace(make_spec(), **{field: OTHER[field]})
    assert other.fingerprint != spec.fingerprint
    assert spec.difference(other) == [FieldDifference(field, getattr(spec, field), OTHER[field])]


@pytest.mark.parametrize("field", LABEL_FIELDS)
def test_labels_are_neither_in_the_fingerprint_nor_in_the_difference(field: str) -> None:
    spec, other = make_spec(), replace(make_spec(), **{field: OTHER[field]})
    assert other.fingerprint == spec.fingerprint
    assert spec.difference(other) == []


def test_every_field_is_identity_or_label() -> None:
    assert {*IDENTITY_FIELDS, *LABEL_FIELDS} == set(make_spec().to_dict()) == set(OTHER)


def test_a_spec_goes_through_a_dict() -> None:
    assert StoreSpec.from_dict(make_spec().to_dict()) == make_spec()


def test_a_dict_with_other_fields_is_refused_by_name() -> None:
    values = make_spec().to_dict()
    del values["tap"]
    with raises("cache.wrong_spec_fields", SpecError, missing=["tap"], unknown=["level"]):
        StoreSpec.from_dict(values | {"level": "final"})


STORAGE_RULE = "one of float16, float32, bfloat16, then kinds that differ: float16,cls=float32"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("architecture", "", "a text that is not empty"),
        ("backbone", "  ", "a text that is not empty"),
        ("transform", 3, "a text that is not empty"),
        ("weights", "0XYZ", "8 to 128 lower-case hex digits"),
        ("manifest", "abc", "8 to 128 lower-case hex digits"),
        ("tap", "norm1", "one of norm2, block, or module: and a pattern"),
        ("compute_dtype", "float64", "one of float32, float16, bfloat16"),
        ("storage_dtype", "int8", STORAGE_RULE),
        ("storage_dtype", "cls=float32", STORAGE_RULE),  # the canonical form begins with the dtype of the others
        ("storage_dtype", "float16,cls=float16", STORAGE_RULE),
        ("num_rows", 0, "an int >= 1"),
        ("num_rows", True, "an int >= 1"),
        ("num_rows", 3.0, "an int >= 1"),
    ],
)
def test_an_invalid_field_is_refused_by_name(field: str, value: object, rule: str) -> None:
    with raises("cache.invalid_spec", SpecError, expected=f"{field} to be {rule}", got=f"{field} = {value!r}"):
        make_spec(**{field: value})


def test_all_invalid_fields_are_named_at_once() -> None:
    with raises("cache.invalid_spec", SpecError, got="split = ''; tap = 'x'") as refused:
        make_spec(split="", tap="x")
    assert re.fullmatch("split to be .*; tap to be .*", refused.error.values["expected"])


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"level": "block/3"}, "cache.invalid_array_name", {"field": "level", "name": "block/3"}),
        ({"kind": ""}, "cache.invalid_array_name", {"field": "kind", "name": ""}),
        ({"kind": ".."}, "cache.invalid_array_name", {"field": "kind", "name": ".."}),
        ({"row_shape": ()}, "cache.invalid_row_shape", {"array": "tokens/final/cls", "shape": ()}),
        ({"row_shape": (2, 3, 4)}, "cache.invalid_row_shape", {"shape": (2, 3, 4)}),
        ({"row_shape": (0,)}, "cache.invalid_row_shape", {"shape": (0,)}),
    ],
)
def test_an_invalid_array_is_refused(changes: dict[str, Any], key: str, values: dict[str, object]) -> None:
    with raises(key, SpecError, **values):
        ArraySpec(**({"level": "final", "kind": "cls", "row_shape": (8,)} | changes))


def test_a_store_lies_under_data_set_split_backbone_and_fingerprint() -> None:
    spec = make_spec(backbone="open_clip/ViT-B-32-quickgelu/openai", dataset="wds/cifar10", split="test")
    expected = Path("caches/wds-cifar10/test") / f"open_clip-ViT-B-32-quickgelu-openai-{spec.fingerprint[:8]}.zarr"
    assert spec.store_path("caches") == expected


@given(st.text())
def test_no_name_leads_out_of_the_cache_folder(name: str) -> None:
    part = path_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", part)
    assert part[0] not in ".-"


@given(
    st.dictionaries(st.sampled_from(["cls", "ap", "grid2", "patch"]), st.sampled_from([*STORAGE_DTYPES])),
    st.sampled_from(["", *STORAGE_DTYPES]),
    st.randoms(use_true_random=False),
)
def test_storage_dtypes_have_one_canonical_form_and_each_kind_keeps_its_dtype(
    by_kind: dict[str, str], default: str, random: Random
) -> None:
    parts = [f"{kind}={dtype}" for kind, dtype in by_kind.items()] + ([default] if default or not by_kind else [])
    parts = [part or "float16" for part in parts]
    random.shuffle(parts)
    text = storage_dtypes_text(" , ".join(parts))
    assert storage_dtypes_text(text) == text
    spec = make_spec(storage_dtype=text)
    for kind in ("cls", "ap", "grid2", "patch"):
        assert spec.dtype_of(kind) == by_kind.get(kind, default or "float16")
    assert set(kinds_with_own_dtype(text)) <= set(by_kind)


@pytest.mark.parametrize("text", ["int8", "cls=int8", "", "=float16", "a/b=float16"])
def test_unknown_storage_dtypes_and_kinds_are_refused(text: str) -> None:
    with raises("cache.invalid_storage_dtype", SpecError, text=text, dtypes="float16, float32, bfloat16"):
        storage_dtypes_text(text)


@pytest.mark.parametrize(("text", "part"), [("cls=float32,cls=float16", "cls=float16"), ("float32,float16", "float16")])
def test_two_storage_dtypes_for_a_kind_are_refused(text: str, part: str) -> None:
    with raises("cache.repeated_storage_dtype", SpecError, part=part):
        storage_dtypes_text(text)
