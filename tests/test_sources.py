"""Tokens are normalised over the width, then stacked with padding or concatenated without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from messages import raises

from layerbank.probes import ColumnBlock
from layerbank.probes.data.token_source import ArraySource, TokenSource, concat_tokens, l2_normalize, stack_tokens
from layerbank.probes.errors import DataError


def parts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 1, 8), (3, 4, 8), (3, 2, 5)]
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def test_every_token_has_length_one_before_padding() -> None:
    stacked = stack_tokens(parts())
    assert stacked.shape == (3, 7, 8)
    torch.testing.assert_close(stacked.norm(dim=2), torch.ones(3, 7))
    assert not stacked[:, 5:, 5:].any()
    torch.testing.assert_close(stacked[:, 5:, :5], l2_normalize(parts()[2]))


def test_over_the_token_axis_each_channel_of_a_part_has_length_one() -> None:
    stacked = stack_tokens(parts(), token_axis=True)
    torch.testing.assert_close(stacked[:, 1:5].norm(dim=1), torch.ones(3, 8))
    torch.testing.assert_close(stacked[:, 0].abs(), torch.ones(3, 8))  # a part of one token
    wanted = parts()[2] / parts()[2].square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(stacked[:, 5:, :5], wanted)
    assert not stacked[:, 5:, 5:].any()


def test_concatenation_keeps_each_width() -> None:
    features = concat_tokens(parts())
    assert features.shape == (3, 8 + 4 * 8 + 2 * 5)
    torch.testing.assert_close(features[:, :8], l2_normalize(parts()[0])[:, 0])
    torch.testing.assert_close(features[:, -5:], l2_normalize(parts()[2])[:, 1])


def test_half_precision_is_normalised_in_single() -> None:
    tokens = torch.full((1, 1, 4), 6e4, dtype=torch.float16)
    assert stack_tokens([tokens]).tolist() == [[[0.5] * 4]]
    assert concat_tokens([tokens]).dtype == torch.float32


def test_an_array_source_gives_the_rows_it_is_asked_for() -> None:
    source = ArraySource(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0]), 2)
    assert isinstance(source, TokenSource)
    assert source.token_shape == (2,)
    rows = source.take(torch.tensor([2, 0]))
    assert rows.tolist() == [[4, 5], [0, 1]]
    rows.zero_()
    assert source.tokens.any()


@pytest.mark.parametrize("wrong", [[], [torch.zeros(2, 3)], [torch.zeros(2, 1, 3), torch.zeros(3, 1, 3)]])
def test_parts_that_do_not_go_together_are_refused(wrong: list[torch.Tensor]) -> None:
    for combine in (stack_tokens, concat_tokens):
        with raises("probes.mixed_token_parts", DataError, shapes=[list(part.shape) for part in wrong]):
            combine(wrong)


def test_labels_that_do_not_fit_are_refused() -> None:
    tokens = torch.zeros(3, 2)
    with raises("probes.targets_do_not_match", DataError, tokens="torch.float32 [3, 2]", targets=[2]):
        ArraySource(tokens, torch.tensor([0, 1]), 2)
    with raises("probes.labels_out_of_range", DataError, last=1, least=0, largest=2):
        ArraySource(tokens, torch.tensor([0, 1, 2]), 2)
    with raises("probes.labels_not_int64", DataError, dtype=torch.float32):
        ArraySource(tokens, torch.tensor([0.0, 1.0, 1.0]), 2)


NAN = torch.tensor([[0.6, 0.8], [float("nan"), 0.0], [1.0, 0.0]])
TOKENS, LABELS = l2_normalize(torch.ones(3, 2)), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("probes.targets_do_not_match", {"tokens": torch.ones(3)}),
        ("probes.targets_do_not_match", {"tokens": torch.ones(3, 2, dtype=torch.int64)}),
        ("probes.targets_do_not_match", {"tokens": torch.ones(4, 2)}),
        ("probes.targets_of_other_shape", {"targets": torch.zeros(3, 1, dtype=torch.int64)}),
        ("probes.targets_of_other_shape", {"targets": torch.eye(3, dtype=torch.int64)}),
        ("probes.labels_not_int64", {"targets": torch.tensor([0.0, 1.0, 1.0])}),
        ("probes.labels_out_of_range", {"targets": torch.tensor([0, -1, 1])}),
        ("probes.labels_out_of_range", {"task": 1}),
        ("probes.tokens_not_finite", {"tokens": NAN}),
        ("probes.tokens_not_finite", {"tokens": torch.full((3, 2), float("inf")).half()}),
        ("probes.images_not_ascending", {"images": torch.tensor([0, 1, 0])}),
        ("probes.images_not_ascending", {"images": torch.tensor([0, 1])}),
        ("probes.images_not_ascending", {"images": torch.tensor([0.0, 1.0, 2.0])}),
        ("probes.groups_do_not_match", {"groups": torch.tensor([0, 1, 1])}),
        ("probes.weights_do_not_match", {"weights": torch.ones(4).double()}),
        ("probes.weights_do_not_match", {"weights": torch.ones(3)}),
        ("probes.weights_do_not_match", {"weights": torch.tensor([1.0, 0.0, 2.0]).double()}),
        ("probes.weights_do_not_match", {"weights": torch.tensor([1.0, float("nan"), 2.0]).double()}),
        ("probes.validation_does_not_match", {"is_validation": torch.tensor([True, True])}),
        ("probes.validation_does_not_match", {"is_validation": torch.tensor([1, 1, 0])}),
        ("probes.validation_does_not_match", {"is_validation": torch.tensor([True, False, False])}),
        ("probes.blocks_do_not_match", {"blocks": (ColumnBlock(name="a", num_tokens=1, width=3),)}),
    ],
)
def test_arrays_that_do_not_fit_are_refused(key: str, changed: dict[str, Any]) -> None:
    given = {"tokens": TOKENS, "targets": LABELS, "task": 2, "images": torch.tensor([0, 0, 4])}
    with raises(key, DataError):
        ArraySource(**given | changed)


def test_large_finite_tokens_and_numpy_arrays_are_taken() -> None:
    assert len(ArraySource(torch.full((3, 2), 3e38), LABELS, 2).targets) == 3
    numbers = LABELS.numpy()
    assert ArraySource(TOKENS.numpy(), numbers, numbers.max() + 1).task.num_outputs == 2  # type: ignore[arg-type]
