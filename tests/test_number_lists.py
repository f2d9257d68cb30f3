"""Options that take one whole number or several, and those that take a length of time."""

from __future__ import annotations

import pytest
from messages import raises

from layerbank import RequestError
from layerbank.quantities import parse_age, parse_numbers


def test_numbers_stand_between_commas_and_count_once() -> None:
    assert parse_numbers("0", where="--seed", at_least=0) == (0,)
    assert parse_numbers(" 4, 8,24,8 ", where="--num-heads", at_least=1) == (4, 8, 24)


@pytest.mark.parametrize("text", ["", "a", "4,,8", "-1", "1.5", "0", "4;8", "\u0663"])
def test_anything_else_is_refused_in_four_parts(text: str) -> None:
    with raises("layerbank.not_whole_numbers", RequestError, option="--num-heads", least=1, text=text):
        parse_numbers(text, where="--num-heads", at_least=1)


@pytest.mark.parametrize("text", ["", "7", "7 weeks", "-1d", "1e2h", "d"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with raises("layerbank.not_an_age", RequestError, option="--unfinished", text=text):
        parse_age(text, "--unfinished")
