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
from token_stores import make_spec

from layerbank.cache import ArraySpec, CacheSpec, FieldDifference, SpecError, kinds_with_own_dtype, storage_dtypes_text
from layerbank.cache.spec import IDENTITY_FIELDS, LABEL_FIELDS, path_name
from layerbank.cache.storage_dtypes import STORAGE_DTYPES

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
    assert CacheSpec.from_dict(make_spec().to_dict()) == make_spec()


def test_a_dict_with_other_fields_is_refused_by_name() -> None:
    values = make_spec().to_dict()
    del values["tap"]
    with pytest.raises(
        SpecError, match=r"got missing \['tap'\], unknown \['level'\]\. Was it written by another version"
    ):
        CacheSpec.from_dict(values | {"level": "final"})


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
        ("storage_dtype", "cls=float32", STORAGE_RULE),  # the one form begins with the dtype of the others
        ("storage_dtype", "float16,cls=float16", STORAGE_RULE),
        ("num_rows", 0, "an int >= 1"),
        ("num_rows", True, "an int >= 1"),
        ("num_rows", 3.0, "an int >= 1"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused_by_name(field: str, value: object, rule: str) -> None:
    message = f"CacheSpec: expected {field} to be {rule}, got {field} = {value!r}. Correct these fields."
    with pytest.raises(SpecError, match=re.escape(message)):
        make_spec(**{field: value})


def test_all_wrong_fields_are_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"expected split to be .*; tap to be .*, got split = ''; tap = 'x'"):
        make_spec(split="", tap="x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"level": "block/3"},
            "expected a level of letters, digits, '_', '.' and '-', got 'block/3'. Levels are block.0,",
        ),
        ({"kind": ""}, "expected a kind of letters, digits, '_', '.' and '-', got ''"),
        ({"kind": ".."}, "expected a kind of letters"),
        (
            {"row_shape": ()},
            "tokens/final/cls: expected a row shape (D,) or (T, D), got (). Pass the shape of one sample's",
        ),
        ({"row_shape": (2, 3, 4)}, "expected a row shape (D,) or (T, D), got (2, 3, 4)"),
        ({"row_shape": (0,)}, "expected a row shape (D,) or (T, D), got (0,)"),
    ],
)
def test_an_array_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
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
def test_storage_dtypes_have_one_form_and_each_kind_keeps_its_dtype(
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


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("int8", "'int8'"),
        ("cls=int8", "'cls=int8'"),
        ("", "''"),
        ("=float16", "'=float16'"),
        ("a/b=float16", "'a/b=float16'"),
        ("cls=float32,cls=float16", "'cls=float16' twice"),
        ("float32,float16", "'float16' twice"),
    ],
)
def test_storage_dtypes_that_make_no_sense_are_refused(text: str, got: str) -> None:
    expected = "one of float16, float32, bfloat16, or dtypes by kind such as cls=float32,ap=float16"
    with pytest.raises(
        SpecError, match=re.escape(f"storage dtype: expected {expected}, got {got}. Name each kind once")
    ):
        storage_dtypes_text(text)
