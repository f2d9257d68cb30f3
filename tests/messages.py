"""Tests name a message by its key: which error is raised, or shown by a command, and with which values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from click.testing import Result

from layerbank.errors import LayerbankError, find_message


class Refused:
    """The error that a block under `raises` ended with, once it has."""

    error: LayerbankError


@contextmanager
def raises(key: str, kind: type[LayerbankError] = LayerbankError, /, **values: object) -> Iterator[Refused]:
    """The block ends with the message of this key, with these of its values among others."""
    refused = Refused()
    with pytest.raises(kind) as caught:
        yield refused
    refused.error = caught.value
    check(caught.value, key, values)


def refuses(result: Result, key: str, exit_code: int = 2, **values: object) -> LayerbankError:
    """A command (`commands.run`) ended with the message of this key and this exit code."""
    error: BaseException | None = result.exception
    while error is not None and not isinstance(error, LayerbankError):
        error = error.__context__
    assert isinstance(error, LayerbankError), result.output
    check(error, key, values)
    assert result.exit_code == exit_code
    return error


def check(error: LayerbankError, key: str, values: dict[str, object]) -> None:
    assert error.key == key, f"{error.key}: {error}"
    assert {name: error.values.get(name) for name in values} == {name: str(value) for name, value in values.items()}


def shows(text: str, key: str) -> bool:
    """Whether the message of this key stands in the output of a process, whatever its values and wherever lines break."""
    message, squeezed = find_message(key), re.sub(r"\s+", "", text)
    return all(_matches(part, squeezed) for part in (message.where, message.expected, message.got, message.todo))


def _matches(part: str, squeezed: str) -> bool:
    pieces = re.split(r"\{[^}]*\}", part)
    return re.search(".*?".join(re.escape(re.sub(r"\s+", "", piece)) for piece in pieces), squeezed) is not None
