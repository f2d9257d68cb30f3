"""What a page is made of: sections of words, tables, pictures and images. Text is text; the template escapes it.

    Page -> Group (a protocol) -> Section (a heading, an entry of the contents) -> blocks

A block names its own `kind`, by which the template knows how to set it. Nothing here knows rows, probes or files.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

MAX_LINES = 2000  # of a table on the page; its CSV has them all
_NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e-\d+)?( (±|to|of) .*)?")
_NO_NUMBER = ("", "-", "diverged")
WIDE_POINTS = 300  # of an SVG: more takes both columns of a paper, and the whole width of the page


def csv_text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """CSV as every file of a report has it; None and NaN are nothing, floats have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([None if cell is None or cell != cell else cell for cell in line] for line in lines)
    return text.getvalue()


def data_uri(content: bytes, media_type: str) -> str:
    """Bytes as an address that needs no network."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table that is more than its text.

    Attributes:
        text: what stands in it.
        mark: `best` is set bold, `tied` underlined, `warned` has a link to `target`.
        target: id of what explains the warning.
    """

    text: str
    mark: str = ""
    target: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Words:
    """Paragraphs.

    Attributes:
        texts: one a paragraph.
        quiet: whether they only explain.
    """

    kind: ClassVar[str] = "words"
    texts: Sequence[str]
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Bullets:
    """A list."""

    kind: ClassVar[str] = "bullets"
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Names and values."""

    kind: ClassVar[str] = "pairs"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A table that sorts and, where it is long, filters.

    Attributes:
        id: unique in its section's group.
        caption: what it holds, in which unit.
        columns: their heads.
        lines: cells, text or `Cell`; the first is the head of its line.
        csv: its numbers with all their digits; None makes it of the cells.
        foot: how many of the last lines are sums, and stay below.
    """

    kind: ClassVar[str] = "table"
    id: str
    caption: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str | Cell]]
    csv: str | None = None
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
        """Lines that only the CSV has."""
        return len(self.lines) - self.foot - len(self.body)

    @cached_property
    def numeric(self) -> Sequence[bool]:
        """Which columns hold numbers: set to the right, sorted as numbers."""
        columns = [[str(line[place]) for line in self.body] for place in range(len(self.columns))]
        return [
            any(_NUMBER.fullmatch(text) for text in texts)
            and all(text in _NO_NUMBER or _NUMBER.fullmatch(text) for text in texts)
            for texts in columns
        ]

    @property
    def uri(self) -> str:
        """Its CSV."""
        text = csv_text(self.columns, [[str(cell) for cell in line] for line in self.lines])
        return data_uri((text if self.csv is None else self.csv).encode(), "text/csv;charset=utf-8")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with the sentence that stands for it and the numbers that are drawn.

    Attributes:
        name: of its files, without a suffix.
        svg, png: the figure; the second empty unless it was wished.
        csv: its numbers.
        alt: what it shows, with its numbers.
        caption: under it.
    """

    kind: ClassVar[str] = "picture"
    name: str
    svg: bytes
    png: bytes
    csv: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The SVG."""
        return data_uri(self.svg, "image/svg+xml")

    @property
    def csv_uri(self) -> str:
        """The numbers."""
        return data_uri(self.csv, "text/csv;charset=utf-8")

    @property
    def wide(self) -> bool:
        """Whether it was drawn over both columns of a paper."""
        found = re.search(rb'<svg[^>]* width="([\d.]+)pt"', self.svg)
        return found is not None and float(found[1]) > WIDE_POINTS


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Figures beside each other where there is room."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Attention to one image: a line a kind, a cell a level.

    Attributes:
        kinds, levels: names, K and L.
        opacities: [K][L] in 0..1, of the largest share.
        words: the same for who cannot see it.
    """

    kinds: Sequence[str]
    levels: Sequence[str]
    opacities: Sequence[Sequence[float]]
    words: str


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one probe said of an image."""

    probe: str
    answer: str
    confidence: str
    hit: bool


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image.

    Attributes:
        sample_id: its name.
        image: data URI of a small copy, None where there is none.
        truth: its class.
        said: what each probe said.
        strip: where it was looked at, None where that is not known.
    """

    sample_id: str
    image: str | None
    truth: str
    said: Sequence[Said]
    strip: Strip | None


@dataclass(frozen=True, kw_only=True)
class Cards:
    """Images that were chosen by one rule.

    Attributes:
        title: the rule in a few words.
        cards: the images; none says so.
    """

    kind: ClassVar[str] = "cards"
    title: str
    cards: Sequence[Card]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that open on demand."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Block]


Block = Words | Bullets | Pairs | DataTable | Picture | Gallery | Cards | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        anchor: its id, a word.
        title: heading, and entry of the contents.
        blocks: what stands in it.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The sections of one protocol.

    Attributes:
        title: "" where there is only one.
        prefix: of all ids in it, so that two groups can have the same sections.
        sections: in order.
    """

    title: str
    prefix: str
    sections: Sequence[Section]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything.

    Attributes:
        title: of the page.
        lead: one sentence under it.
        groups: one a protocol.
        notes: what was left out.
        versions: name and version of what made it.
    """

    title: str
    lead: str
    groups: Sequence[Group]
    notes: Sequence[str] = ()
    versions: Sequence[tuple[str, str]] = field(default=())
