"""Identity of a store: what it depends on, and what a spec refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import raises
from token_stores import make_model, make_rows, make_spec

from layerbank.cache import (
    ArraySpec,
    FieldDifference,
    ModelSpec,
    RowSet,
    SpecError,
    StoreSpec,
    kinds_with_own_dtype,
    storage_dtypes_text,
)
from layerbank.cache.spec import MODEL_FIELDS, STORAGE_DTYPES, path_name

OTHER: dict[str, Any] = {
    "architecture": "timm/vit_small img_size=32",
    "weights": "ffffffffffffffff",
    "token_rule": "2",
    "transform": "resize 64",
    "compute_dtype": "bfloat16",
    "storage_dtype": "float32",
}


def test_the_digests_of_a_model_and_of_rows_never_change() -> None:
    assert make_model().digest == "c68f18b2baf940f5bb462131b43d37c5802621bd5d89f1dacf75546dc847c21f"
    assert make_rows().digest == "ccd7b024af235c85092d1b668f7ea13afc4072a65ab1a83f4e3370aaf624bd35"
    assert (
        make_rows([0, 0, 7], views=[0, 1, 2]).digest
        == "581ffea31c3810b7327deae9fe56959027f5409a38e0f5bd2f50ef8f2aa49557"
    )
    assert make_spec().fingerprint == "d33f791bddce7c6d8c26a8bdd9532867fb2cf67463157397f052d80507f989f7"


@pytest.mark.parametrize("field", MODEL_FIELDS)
def test_every_field_of_the_model_but_its_name_is_in_the_digest_and_in_the_difference(field: str) -> None:
    model, other = make_model(), replace(make_model(), **{field: OTHER[field]})
    assert other.digest != model.digest
    assert model.difference(other) == [FieldDifference(field, getattr(model, field), OTHER[field])]
    spec = make_spec()
    assert spec.difference(make_spec(**{field: OTHER[field]})) == model.difference(other)


def test_identity_depends_on_no_name() -> None:
    model, spec = make_model(), make_spec()
    renamed = replace(model, name="another name")
    assert (renamed.digest, model.difference(renamed)) == (model.digest, [])
    other = replace(spec, model=renamed, name="photos-test")
    assert (other.fingerprint, spec.difference(other)) == (spec.fingerprint, [])
    assert {*OTHER, "name"} == set(model.to_dict())


def test_rows_are_known_by_their_images_their_views_their_order_and_the_rules() -> None:
    rows = RowSet(
        hashes=np.array([3, 5, 5], dtype=np.uint64), views=np.array([0, 0, 1], dtype=np.uint16), view_rule="a"
    )
    changed = [
        replace(rows, hashes=rows.hashes[::-1]),
        replace(rows, hashes=rows.hashes + np.uint64(1)),
        replace(rows, views=np.array([0, 1, 0], dtype=np.uint16)),
        replace(rows, views=None),
        replace(rows, view_rule="b"),
        replace(rows, hash_rule=1),
        rows.select(np.array([0, 1])),
    ]
    assert len({rows.digest, *(one.digest for one in changed)}) == 8


def test_rows_of_centre_views_only_have_no_view_rule() -> None:
    plain = make_rows(5)
    views = RowSet(hashes=plain.hashes, views=np.zeros(5, dtype=np.uint16), view_rule="crop")
    assert (views.views, views.view_rule, views.digest) == (None, "", plain.digest)


def test_the_key_of_a_view_depends_on_image_view_and_rule() -> None:
    keys = make_rows([0, 0, 0, 1, 1], views=[0, 1, 2, 1, 0]).keys
    assert len(np.unique(keys)) == 5
    np.testing.assert_array_equal(keys[[0, 4]], make_rows([0, 1]).keys)  # a centre view has the key of its image
    other = RowSet(hashes=make_rows([0]).hashes, views=np.array([1], dtype=np.uint16), view_rule="another rule")
    assert other.keys[0] not in keys
    again = make_rows([1, 0], views=[1, 2]).keys
    np.testing.assert_array_equal(again, keys[[3, 2]])  # whatever rows are beside it


def test_an_image_that_could_not_be_read_has_no_key_in_any_view() -> None:
    rows = RowSet(hashes=np.zeros(3, dtype=np.uint64), views=np.arange(3, dtype=np.uint16), view_rule="crop")
    assert rows.keys.tolist() == [0, 0, 0]


def test_a_model_goes_through_a_dict() -> None:
    assert ModelSpec.from_dict(make_model().to_dict()) == make_model()


def test_a_dict_with_other_fields_is_refused_by_name() -> None:
    values = make_model().to_dict()
    del values["weights"]
    with raises("cache.wrong_spec_fields", SpecError, missing=["weights"], unknown=["level"]):
        ModelSpec.from_dict(values | {"level": "final"})


STORAGE_RULE = "one of float16, float32, bfloat16, then kinds that differ: float16,cls=float32"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("architecture", "", "a text that is not empty"),
        ("name", "  ", "a text that is not empty"),
        ("transform", 3, "a text that is not empty"),
        ("weights", "0XYZ", "8 to 128 lower-case hex digits"),
        ("compute_dtype", "float64", "one of float32, float16, bfloat16"),
        ("storage_dtype", "int8", STORAGE_RULE),
        ("storage_dtype", "cls=float32", STORAGE_RULE),  # the canonical form begins with the dtype of the others
        ("storage_dtype", "float16,cls=float16", STORAGE_RULE),
    ],
)
def test_an_invalid_field_of_a_model_is_refused_by_name(field: str, value: object, rule: str) -> None:
    values = {"spec": "ModelSpec", "expected": f"{field} to be {rule}", "got": f"{field} = {value!r}"}
    with raises("cache.invalid_spec", SpecError, **values):
        make_model(**{field: value})


def test_all_invalid_fields_are_named_at_once() -> None:
    with raises("cache.invalid_spec", SpecError, got="token_rule = ''; compute_dtype = 'x'") as refused:
        make_model(token_rule="", compute_dtype="x")
    assert re.fullmatch("token_rule to be .*; compute_dtype to be .*", refused.error.values["expected"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows_digest", "abc"),
        ("rows_digest", 7),
        ("num_rows", 0),
        ("num_rows", True),
        ("num_rows", 3.0),
        ("hash_rule", 0),
        ("view_rule", None),
        ("name", " "),
    ],
)
def test_an_invalid_field_of_a_store_is_refused_by_name(field: str, value: object) -> None:
    with raises("cache.invalid_spec", SpecError, spec="StoreSpec", got=f"{field} = {value!r}"):
        StoreSpec(**(make_spec().to_dict() | {"model": make_model(), field: value}))


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"level": "block/3"}, "cache.invalid_array_name", {"field": "level", "name": "block/3"}),
        ({"kind": ""}, "cache.invalid_array_name", {"field": "kind", "name": ""}),
        ({"kind": ".."}, "cache.invalid_array_name", {"field": "kind", "name": ".."}),
        ({"row_shape": ()}, "cache.invalid_row_shape", {"array": "tokens/final/cls", "shape": ()}),
        ({"row_shape": (2, 3, 4)}, "cache.invalid_row_shape", {"shape": (2, 3, 4)}),
        ({"row_shape": (0,)}, "cache.invalid_row_shape", {"shape": (0,)}),
        ({"level": "block.0", "tap": ""}, "cache.invalid_tap", {"tap": ""}),
        ({"level": "block.0", "tap": "final"}, "cache.invalid_tap", {"tap": "final"}),
    ],
)
def test_an_invalid_array_is_refused(changes: dict[str, Any], key: str, values: dict[str, object]) -> None:
    with raises(key, SpecError, **values):
        ArraySpec(**({"level": "final", "kind": "cls", "row_shape": (8,)} | changes))


def test_the_tap_is_in_the_path_of_an_array() -> None:
    taps = ["norm2", "block", "module:blocks.{i}.norm2", "module:blocks.{i}-norm2"]
    names = [ArraySpec(level="block.3", kind="cls", row_shape=(8,), tap=tap).name for tap in taps]
    assert names[:2] == ["tokens/norm2/block.3/cls", "tokens/block/block.3/cls"]
    assert names[2] == "tokens/module-blocks.-i-.norm2-412b2ec0/block.3/cls"
    assert len({name.casefold() for name in names}) == 4
    final = {ArraySpec(level="final", kind="cls", row_shape=(8,), tap=tap) for tap in taps}
    assert [(array.name, array.tap) for array in final] == [("tokens/final/cls", "")]


def test_a_store_lies_under_its_model_and_its_rows() -> None:
    model = make_model(name="open_clip/ViT-B-32-quickgelu/openai")
    spec = replace(make_spec(name="wds/cifar10-test"), model=model)
    folder = f"open_clip-ViT-B-32-quickgelu-openai-{model.digest[:8]}"
    assert spec.path("caches") == Path("caches") / folder / f"wds-cifar10-test-{make_rows().digest[:8]}.zarr"
    assert model.folder("caches") == spec.path("caches").parent


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
    spec = make_model(storage_dtype=text)
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
