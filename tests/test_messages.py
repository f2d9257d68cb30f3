"""Every message has four parts, is raised with the values it names, and is provoked by a test that names its key."""

from __future__ import annotations

import ast
import pickle
import re
import string
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from layerbank import cli
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


def options_of(group: click.Group, before: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command and its options."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from options_of(command, f"{before}{name} ")
        else:
            names = [name for one in command.params for name in (*one.opts, *one.secondary_opts)]
            yield before + name, {name for name in names if name.startswith("--")}


COMMANDS = dict(options_of(cli.main))
CALL = re.compile(rf"layerbank ({'|'.join(sorted(COMMANDS, key=len, reverse=True))})\b(.*?)(?=[`;]|(?<!\.)\. |\.$|$)")
SHOWN_BY = {  # the commands that show the messages of a package, or one of them
    "api": [],
    "cache": ["extract", "plan", "probe"],
    "cache.foreign_in_store": ["cache rm"],
    "cache.second_axis": ["cache from"],
    "data": ["extract", "plan", "probe", "predict"],
    "data.ids_do_not_match": ["probe"],
    "data.missing_targets": ["probe"],
    "data.no_table_of_data": ["probe"],
    "executors": ["extract", "study"],
    "executors.device_number_on_ray": ["extract", "study"],
    "extraction": ["extract", "plan", "probe"],
    "extraction.processes_of_a_worker": ["extract", "plan"],
    "extraction.ray_with_shards": ["extract"],
    "jobs": ["extract", "probe"],
    "jobs.unit_lost": ["study"],
    "jobs.worker_has_other_files": ["extract"],
    "layerbank": [],
    "models": ["extract", "plan", "probe"],
    "models.no_second_norm": ["extract", "plan", "probe"],
    "models.several_weights": ["extract", "plan", "probe"],
    "models.weights_count": ["extract", "plan"],
    "probes": ["probe"],
    "probing": ["probe"],
    "probing.export_head": ["export"],
    "probing.export_model": ["export"],
    "report": ["report"],
    "statistics": ["report"],
}


def options_in(text: str) -> set[str]:
    other_programs = r"`(?!layerbank)[a-z]+ [^`]*`|(pip|ray|hf) [^;.]*"
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(other_programs, "", text)))


@pytest.mark.parametrize("key", KEYS)
def test_a_message_names_no_option_that_its_command_does_not_have(key: str) -> None:
    message = find_message(key)
    package = key.partition(".")[0]
    concerned = options_in(message.where)  # only commands that have it can be wrong about it
    commands = [name for name, options in COMMANDS.items() if concerned <= options] if concerned else SHOWN_BY[package]
    if package == "models":  # whose --model is but a name there
        commands = [name for name in commands if name != "cache from"]
    for text in (message.expected, message.got, message.todo):
        for call in CALL.finditer(text):
            assert options_in(call[2]) <= COMMANDS[call[1]], call[0]
        named = options_in(CALL.sub("", text))
        assert {name: named - COMMANDS[name] for name in SHOWN_BY.get(key, commands) if named - COMMANDS[name]} == {}


@pytest.mark.parametrize(
    "kind", [RequestError, *sorted({*CacheError.__subclasses__()} - {SpecMismatchError}, key=str), CheckpointMissing]
)
def test_an_error_survives_the_way_from_another_process(kind: type[LayerbankError]) -> None:
    error = kind("layerbank.unknown_part", noun="head", name="alff", names="alf", advice="Choose one of them.")
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
