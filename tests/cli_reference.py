"""Writes the command reference and the names of probes of pipeline/README.md from the code itself: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import layerbank
from layerbank.cli import main
from layerbank.probing import probe_spec

README = Path(layerbank.__file__).parent / "README.md"
MARK = "<!-- reference -->\n"
NAMES = ("<!-- names -->\n", "<!-- /names -->\n")
SETTINGS: dict[str, Any] = {"terminal_width": 100, "help_option_names": ["-h", "--help"]}


def reference() -> str:
    """`--help` of every command, as Markdown."""
    parts = [f"### {path}\n\n```text\n{text}\n```\n" for path, text in _helps(main, "layerbank")]
    return "\n" + "\n".join(parts)


def with_reference(text: str) -> str:
    """The README with the names between their marks, and everything after the mark of the reference, made anew."""
    start, stop = text.index(NAMES[0]) + len(NAMES[0]), text.index(NAMES[1])
    text = text[:start] + names() + text[stop:]
    return text[: text.index(MARK) + len(MARK)] + reference()


def names() -> str:
    """The tables of `probe_spec.py`, without its first line."""
    return (probe_spec.__doc__ or "").partition("\n")[2].strip("\n") + "\n"


def _helps(command: click.Command, path: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    with click.Context(command, info_name=path.split()[-1], parent=parent, **SETTINGS) as context:
        yield path, command.get_help(context)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                yield from _helps(command.commands[name], f"{path} {name}", context)


if __name__ == "__main__":
    README.write_text(with_reference(README.read_text(encoding="utf-8")), encoding="utf-8")
