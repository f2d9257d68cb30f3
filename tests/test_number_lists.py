"""Options that take one whole number or several."""

from __future__ import annotations

import pytest

from layerbank import RequestError
from layerbank.quantities import parse_numbers


def test_numbers_stand_between_commas_and_count_once() -> None:
    assert parse_numbers("0", where="--seed", at_least=0) == (0,)
    assert parse_numbers(" 4, 8,24,8 ", where="--num-heads", at_least=1) == (4, 8, 24)


@pytest.mark.parametrize("text", ["", "a", "4,,8", "-1", "1.5", "0", "4;8", "\u0663"])
def test_anything_else_is_refused_in_four_parts(text: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_numbers(text, where="--num-heads", at_least=1)
    assert str(error.value) == (
        f"--num-heads: expected whole numbers from 1, with commas between, got {text!r}. Write for example --num-heads 1,2."
    )
