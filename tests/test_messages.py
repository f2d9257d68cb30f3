"""Every message has four parts, is raised with the values it names, and is provoked by a test that names its key."""

from __future__ import annotations

import ast
import pickle
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerbank.cache.errors import CacheError, FieldDifference, SpecMismatchError
from layerbank.errors import LayerbankError, Message, RequestError, find_message, messages_of
from layerbank.probes.errors import CheckpointMissing

ROOT = Path(__file__).resolve().parent.parent
TABLES = {
    path.parent.name: path
    for folder in ("cache", "probes", "pipeline")
    for path in (ROOT / folder).rglob("messages.toml")
}
PACKAGES = sorted("layerbank" if name == "pipeline" else name for name in TABLES)
KEYS = [f"{package}.{name}" for package in PACKAGES for name in messages_of(package)]


def fields(message: Message) -> set[str]:
    """The values that a message names."""
    parts = (message.where, message.expected, message.got, message.todo)
    return {name for part in parts for _, name, _, _ in string.Formatter().parse(part) if name}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call in the sources whose first argument is a key: the key, the call, and where it is."""
    for folder in ("cache", "probes", "pipeline"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    key = node.args[0].value
                    if isinstance(key, str) and key in KEYS:
                        yield key, node, f"{path.relative_to(ROOT)}:{node.lineno}"


@pytest.mark.parametrize("key", KEYS)
def test_a_message_says_what_to_do_in_a_sentence(key: str) -> None:
    message = find_message(key)
    assert all((message.where, message.expected, message.got, message.todo))
    assert message.todo.endswith((".", "}", "?", ")"))
    assert message.todo[0].isupper() or message.todo[0] in "{`"


def test_every_error_is_raised_with_exactly_the_values_that_its_message_names() -> None:
    wrong = [
        (place, key, sorted(given ^ fields(find_message(key))))
        for key, call, place in calls()
        if None not in (given := {keyword.arg for keyword in call.keywords}) and given != fields(find_message(key))
    ]
    assert wrong == []


def test_every_message_is_used() -> None:
    assert sorted(set(KEYS) - {key for key, _, _ in calls()}) == []


def test_every_message_is_provoked_by_a_test_that_names_it() -> None:
    named = {
        node.value
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(set(KEYS) - named) == []


@pytest.mark.parametrize(
    "kind", [RequestError, *sorted({*CacheError.__subclasses__()} - {SpecMismatchError}, key=str), CheckpointMissing]
)
def test_an_error_survives_the_way_from_another_process(kind: type[LayerbankError]) -> None:
    error = kind("layerbank.unknown_part", noun="head", name="alff", names="alf", nearest="alf")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.key, again.values) == (str(error), "layerbank.unknown_part", error.values)


def test_the_differences_of_two_specs_survive_it_too() -> None:
    differences = [FieldDifference("tap", "block", "norm2")]
    error = SpecMismatchError("cache.other_identity", store="a.zarr", differences=differences)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is SpecMismatchError
    assert (str(again), again.differences) == (str(error), tuple(differences))


def test_a_message_of_another_package_needs_no_table() -> None:
    error = RequestError(Message(where="{path}", expected="a zip file", got="{got}", todo="Give one."), path="a", got=3)
    assert str(error) == "a: expected a zip file, got 3. Give one."
