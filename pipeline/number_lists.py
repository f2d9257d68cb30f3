"""Options that take one whole number or several: `--seed 0`, `--num-heads 4,8,24`."""

from __future__ import annotations

from .errors import RequestError


def parse_numbers(text: str, *, where: str, at_least: int) -> tuple[int, ...]:
    """Whole numbers with commas between, each once, in the order given.

    Args:
        text: such as "4,8,24".
        where: the option, for the message.
        at_least: the smallest that will do.

    Raises:
        RequestError: something else, a number that is too small, or nothing at all.

    >>> parse_numbers("8, 4,8", where="--num-heads", at_least=1)
    (8, 4)
    """
    numbers: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        if not (part.isascii() and part.isdigit() and int(part) >= at_least):
            raise RequestError(
                where=where,
                expected=f"whole numbers from {at_least}, with commas between",
                got=repr(text),
                todo=f"Write for example {where} {at_least},{at_least + 1}.",
            )
        numbers.append(int(part))
    return tuple(dict.fromkeys(numbers))
