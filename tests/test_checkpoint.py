"""A saved probe comes back bit for bit, and a damaged one is named."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from messages import raises
from safetensors.torch import load_file, save_file

from layerbank.probes import HEADS, Ensemble, Head, concat_tokens, make_probe, stack_tokens
from layerbank.probes.checkpoint import load_probe, save_probe
from layerbank.probes.data.token_source import l2_normalize
from layerbank.probes.errors import CheckpointError, CheckpointMissing, DataError, SettingError
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.heads.knn import KnnProbe
from layerbank.probes.heads.linear import LinearProbe

MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "probe",
    [
        AttentiveProbe(10, 3, 4, seed=5),
        AttentiveProbe(10, 3, 4, token_mask=MASK),
        AttentiveProbe(10, 3, 4).double(),
        LinearProbe(7, 3),
        KnnProbe(l2_normalize(torch.rand(6, 7)), torch.arange(6) % 3, 3, num_neighbors=4, temperature=0.1),
    ],
)
def test_a_probe_comes_back_bit_for_bit_with_its_config(
    tmp_path: Path, probe: AttentiveProbe | LinearProbe | KnnProbe
) -> None:
    config = {"model": "timm/x", "levels": ["block.0", "final"], "classes": ["é", "b"]}
    save_probe(tmp_path / "new" / "probe", probe, config)
    loaded, same = load_probe(tmp_path / "new" / "probe")
    assert same == config
    assert type(loaded) is type(probe)
    assert not loaded.training
    state = loaded.state_dict()
    inputs = torch.rand(5, 7) if not isinstance(probe, AttentiveProbe) else torch.rand(5, 3, 10).to(probe.query.dtype)
    assert torch.equal(loaded(inputs), probe.eval()(inputs))
    assert state.keys() == probe.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in probe.state_dict().items())
    files = sorted(path.name for path in (tmp_path / "new" / "probe").iterdir())
    assert files == ["probe.json", "probe.safetensors"]


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    save_probe(tmp_path, LinearProbe(7, 3, seed=0), {"number": 1})
    save_probe(tmp_path, LinearProbe(5, 2, seed=1), {"number": 2})
    probe, config = load_probe(tmp_path)
    assert config == {"number": 2}
    assert isinstance(probe, LinearProbe)
    assert probe.num_features == 5


def test_a_save_that_is_cut_short_leaves_no_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_probe(tmp_path, LinearProbe(7, 3, seed=0), {})
    monkeypatch.setattr("layerbank.probes.checkpoint._write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_probe(tmp_path, LinearProbe(7, 3, seed=1), {})
    with pytest.raises(CheckpointMissing):
        load_probe(tmp_path)


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save_probe(tmp_path, LinearProbe(7, 3), {})
    (tmp_path / name).unlink()
    with raises("probes.no_saved_probe", CheckpointMissing, folder=tmp_path, name=name):
        load_probe(tmp_path)


def test_weights_of_another_head_are_refused_tensor_by_tensor(tmp_path: Path) -> None:
    save_probe(tmp_path, LinearProbe(7, 3), {})
    weights = load_file(tmp_path / "probe.safetensors")
    weights["classifier.weight"] = torch.zeros(3, 8)
    weights["extra"] = weights.pop("classifier.bias")
    save_file(weights, tmp_path / "probe.safetensors")
    expected = "classifier.bias [3], classifier.weight [3, 7], extra absent"
    found = "classifier.bias absent, classifier.weight [3, 8], extra [3]"
    file = tmp_path / "probe.safetensors"
    with raises("probes.foreign_weights", CheckpointError, file=file, expected=expected, found=found):
        load_probe(tmp_path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("{", "probes.damaged_description"),
        ("[]", "probes.damaged_description"),
        ('{"format": 1}', "probes.damaged_description"),
        ('{"format": 1, "config": {}, "head": {}, "token_shape": 0.5}', "probes.damaged_description"),
        ('{"format": 1, "config": {}, "head": {}, "token_shape": "8"}', "probes.damaged_description"),
        ('{"format": 1, "config": {}, "head": {"kind": "conv"}}', "probes.unknown_saved_head"),
        ('{"format": 1, "config": {}, "head": {"kind": "linear", "depth": 3}}', "probes.unknown_saved_head"),
        ('{"format": 1, "config": {}, "head": 3}', "probes.unknown_saved_head"),
        ('{"format": 1, "config": {}, "head": {"kind": "knn", "num_samples": 0}}', "probes.unknown_saved_head"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str, key: str) -> None:
    save_probe(tmp_path, LinearProbe(7, 3), {})
    (tmp_path / "probe.json").write_text(text)
    with raises(key, CheckpointError, file=tmp_path / "probe.json"):
        load_probe(tmp_path)


def test_a_description_of_another_format_is_refused(tmp_path: Path) -> None:
    save_probe(tmp_path, LinearProbe(7, 3), {})
    description = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps(description | {"format": 2}))
    with raises("probes.checkpoint_format", CheckpointError, file=tmp_path / "probe.json", expected=1, found=2):
        load_probe(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_probe(tmp_path, LinearProbe(7, 3), {})
    (tmp_path / "probe.safetensors").write_bytes(b"\x00" * 40)
    with raises("probes.damaged_weights", CheckpointError, file=tmp_path / "probe.safetensors"):
        load_probe(tmp_path)


SHAPES = {True: (24,), False: (4, 12)}  # flat or not


@pytest.mark.parametrize("kind", [kind for kind, head in HEADS.items() if not head.is_solved])
def test_a_loaded_probe_refuses_tokens_that_it_was_not_trained_on(tmp_path: Path, kind: str) -> None:
    shape = SHAPES[HEADS[kind].flat]
    registered = HEADS[kind]
    head = Head(kind=kind, num_heads=2 * registered.has_heads, num_levels=2 * registered.has_levels)
    probe = make_probe(head, shape, 3)
    save_probe(tmp_path, probe, {}, token_shape=shape)
    loaded, _ = load_probe(tmp_path)
    tokens = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    fitting = l2_normalize(tokens)
    assert torch.equal(loaded(fitting), probe.eval()(fitting))
    name = list(inspect.signature(type(probe).forward).parameters)[1]  # after self
    assert torch.equal(loaded(**{name: fitting}), probe(fitting))
    wrong = [fitting[..., :-1], fitting.unsqueeze(1), fitting.half(), fitting.double(), fitting[0], fitting.long()]
    wrong += [] if HEADS[kind].flat else [fitting[:, :3], fitting.repeat(1, 2, 1)]
    for one in wrong:
        with raises("probes.other_tokens", DataError):
            loaded(one)
    for one in (tokens, 1.1 * fitting, fitting / 0):
        with raises("probes.tokens_not_normalized", DataError):
            loaded(one)
    lenient, _ = load_probe(tmp_path, any_tokens=True)
    assert torch.equal(lenient(tokens), probe(tokens))


def test_a_loaded_probe_takes_tokens_as_stack_tokens_and_concat_tokens_join_them(tmp_path: Path) -> None:
    parts = [*torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0)), torch.randn(5, 1, 6)]
    for tokens in (
        stack_tokens(parts),
        stack_tokens(parts, token_axis=True),
        concat_tokens(parts),
        concat_tokens(parts[:1]),
    ):
        stacked = tokens.dim() == 3
        probe = AttentiveProbe(8, 2, 3) if stacked else LinearProbe(tokens.shape[1], 3)
        save_probe(tmp_path, probe, {}, token_shape=tokens.shape[1:])
        loaded, _ = load_probe(tmp_path)
        assert torch.equal(loaded(tokens), probe.eval()(tokens))


def test_a_probe_saved_without_the_shape_of_its_tokens_checks_their_width(tmp_path: Path) -> None:
    save_probe(tmp_path, Ensemble([AttentiveProbe(8, 2, 3, seed=seed) for seed in range(2)]), {})
    loaded, _ = load_probe(tmp_path)
    assert loaded(torch.randn(2, 5, 8)).shape == (2, 3)
    with raises("probes.other_tokens", DataError, expected="torch.float32 [B, T, 8]"):
        loaded(torch.randn(2, 5, 7))


def test_a_config_that_is_no_json_is_refused_and_leaves_the_probe_that_was_there(tmp_path: Path) -> None:
    save_probe(tmp_path, LinearProbe(7, 3), {"number": 1})
    for config in ({"folder": tmp_path}, {"tokens": torch.zeros(2)}):
        with raises("probes.config_not_json", SettingError):
            save_probe(tmp_path, LinearProbe(7, 3), config)
    assert load_probe(tmp_path)[1] == {"number": 1}
