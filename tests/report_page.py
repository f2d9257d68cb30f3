"""Reads a report's page back, with nothing but an HTML parser: its tables, figures, links and headings."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "input", "rect"}
TEXTS = {"p", "li", "h1", "h2", "h3"}


@dataclass
class ReadTable:
    """A table by its heads of columns; cells are text, marks are the tags within."""

    columns: list[str] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)
    marks: list[list[str]] = field(default_factory=list)
    scopes: list[str | None] = field(default_factory=list)
    labelled_by: str | None = None

    def records(self) -> list[dict[str, str]]:
        return [dict(zip(self.columns, line, strict=True)) for line in self.lines]


class ReadPage(HTMLParser):
    """The whole page.

    Attributes:
        tables: id -> table.
        csvs: name of the file -> its lines, of every link that downloads.
        images: attributes of every img and of every svg with a role.
        ids: every id, in order.
        texts: what stands in p, li and headings.
        tags: every opened tag with its attributes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, ReadTable] = {}
        self.csvs: dict[str, list[dict[str, str]]] = {}
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._table: ReadTable | None = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if id := attributes.get("id"):
            self.ids.append(id)
        if tag == "img" or attributes.get("role") == "img":
            self.images.append(attributes)
        if tag == "a" and "download" in attributes:
            _, _, content = (attributes["href"] or "").partition(";base64,")
            text = base64.b64decode(content).decode()
            self.csvs[attributes["download"] or ""] = list(csv.DictReader(io.StringIO(text)))
        if tag == "table":
            self._table = ReadTable(labelled_by=attributes.get("aria-labelledby"))
            self.tables[(attributes["id"] or "").removeprefix("t-")] = self._table
        if self._table is not None:
            if tag == "tr" and "thead" not in self._open:
                self._table.lines.append([])
                self._table.marks.append([])
            elif tag == "th" and "thead" in self._open:
                self._table.columns.append("")
                self._table.scopes.append(attributes.get("scope"))
            elif tag in ("td", "th"):
                self._table.lines[-1].append("")
                self._table.marks[-1].append("")
                if tag == "th":
                    self._table.scopes.append(attributes.get("scope"))
            elif tag in ("b", "u", "a"):
                self._table.marks[-1][-1] = tag
        if tag in TEXTS:
            self.texts.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self._open[-1:] in (["script"], ["style"]):
            return
        if self._table is not None:
            if "thead" in self._open and "th" in self._open:
                self._table.columns[-1] += data
            elif {"td", "th"} & set(self._open) and "a" not in self._open:
                self._table.lines[-1][-1] = (self._table.lines[-1][-1] + data).strip()
        elif TEXTS & set(self._open):
            self.texts[-1] += data
