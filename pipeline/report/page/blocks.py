"""The parts of a page: notes, tables, pictures and images. Text is text; the template escapes it.

    Group (a protocol) -> Section (a heading, an entry of the contents) -> blocks

The template chooses how to show a block by the name of its class. Nothing here knows rows, probes or files.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...outputs import csv_line

MAX_LINES = 2000  # of a table on the page; its CSV has them all
WIDE_POINTS = 300  # width of an SVG from which it takes both columns of a paper, and the whole width of the page
Columns = Mapping[str, Callable[[Any], str]]  # heading -> function that writes a value of this column
_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e-\d+)?( (±|to|of) .*)?")
_NO_NUMBER = ("", "-", "diverged")


def csv_text(header: Iterable[str], lines: Iterable[Sequence[Any]]) -> str:
    """CSV as in every file of a report, see `csv_line`."""
    return "".join(csv_line(list(line)) for line in (list(header), *lines))


def data_uri(content: bytes | str, media_type: str) -> str:
    """Content as an address that needs no network."""
    encoded = content.encode() if isinstance(content, str) else content
    return f"data:{media_type};base64,{base64.b64encode(encoded).decode()}"


@dataclass(frozen=True)
class Note:
    """A paragraph of explanation."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Pairs:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table cell with a mark.

    Attributes:
        text: shown in the cell.
        mark: `best` is set bold, `tied` underlined, `warned` has a link to `target`.
        target: id of the part of the page that explains the warning.
    """

    text: str
    mark: str = ""
    target: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A table that sorts and, if it is long, filters.

    Attributes:
        id: unique in its section's group.
        caption: contents and unit.
        columns: headings.
        lines: cells, text or `Cell`; the first is the heading of its line.
        csv: its numbers with all their digits.
        foot: number of lines at the end that are sums and stay below.
    """

    id: str
    caption: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str | Cell]]
    csv: str
    foot: int = 0

    @cached_property
    def body(self) -> Sequence[Sequence[str | Cell]]:
        """The lines that are shown and sorted."""
        return self.lines[: len(self.lines) - self.foot][:MAX_LINES]

    @property
    def sums(self) -> Sequence[Sequence[str | Cell]]:
        """The lines below."""
        return self.lines[len(self.lines) - self.foot :]

    @property
    def num_hidden(self) -> int:
        """Number of lines that only the CSV has."""
        return len(self.lines) - self.foot - len(self.body)

    @cached_property
    def numeric(self) -> Sequence[bool]:
        """Which columns hold numbers: aligned to the right, sorted as numbers."""
        columns = [[str(line[place]) for line in self.body] for place in range(len(self.columns))]
        return [
            any(_NUMBER.fullmatch(text) for text in texts)
            and all(text in _NO_NUMBER or _NUMBER.fullmatch(text) for text in texts)
            for texts in columns
        ]


def table_of_values(id: str, caption: str, columns: Columns, values: Sequence[Sequence[Any]]) -> DataTable:
    """A table of plain values, and its CSV with all their digits.

    Args:
        id, caption: see `DataTable`.
        columns: headings and how their values are written.
        values: lines, one value for each column.
    """
    lines = [[write(value) for write, value in zip(columns.values(), line, strict=True)] for line in values]
    return DataTable(id=id, caption=caption, columns=tuple(columns), lines=lines, csv=csv_text(columns, values))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with a text alternative and its numbers.

    Attributes:
        name: name of its files, without a suffix.
        svg, png: the figure; `png` is empty unless figures are written as files.
        csv: its numbers.
        alt: what it shows, with its numbers.
        caption: under it.
    """

    name: str
    svg: bytes
    png: bytes
    csv: bytes
    alt: str
    caption: str

    @property
    def wide(self) -> bool:
        """Whether it was drawn over both columns of a paper."""
        found = re.search(rb'<svg[^>]* width="([\d.]+)pt"', self.svg)
        return found is not None and float(found[1]) > WIDE_POINTS


@dataclass(frozen=True)
class Gallery:
    """Figures beside each other where the page is wide enough."""

    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class AttentionStrip:
    """Attention to one image: a line for each of K kinds, a cell for each of L levels.

    Attributes:
        opacities: [K][L] in 0..1, relative to the largest share.
        alt: the same as text.
    """

    opacities: Sequence[Sequence[float]]
    alt: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of one probe to an image."""

    probe: str
    answer: str
    confidence: str
    hit: bool


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image.

    Attributes:
        sample_id: its name.
        image: data URI of a small copy, None without one.
        truth: its class.
        answers: one for each probe.
        strip: attention to it, None where that is unknown.
    """

    sample_id: str
    image: str | None
    truth: str
    answers: Sequence[Answer]
    strip: AttentionStrip | None


@dataclass(frozen=True, kw_only=True)
class Cards:
    """Images that were chosen by one rule, which is the title; the page says so if there are none."""

    title: str
    cards: Sequence[Card]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that open on demand."""

    title: str
    blocks: Sequence[Block]


Block = Note | Bullets | Pairs | DataTable | Picture | Gallery | Cards | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        anchor: its id, a word.
        title: heading, and entry of the contents.
        blocks: its parts, in order.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The sections of one protocol.

    Attributes:
        title: "" if there is only one.
        prefix: prefix of all ids in it, so that two groups can have the same sections.
        sections: in order.
    """

    title: str
    prefix: str
    sections: Sequence[Section]
