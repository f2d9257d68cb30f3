"""The report as one HTML page: no network, readable in dark and light, by keyboard and on paper.

Everything on it is text that Jinja escapes, or a picture inside the page. The template and the script lie beside this file; the
script only sorts and filters, the page says everything without it. Knows rows and findings, not files.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["Picture", "Section", "render_page"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An SVG with the sentence that stands for it.

    Attributes:
        svg: the file's bytes.
        alt: what it shows, with its numbers.
        caption: under it.
    """

    svg: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True, kw_only=True)
class Section:
    """The results of one protocol.

    Attributes:
        title: of the section.
        sentences: the findings in words.
        caption, columns, lines: the table of every result; cells are text.
        picture: gains, None where there is no reference.
        settings: the protocol as (name, value).
    """

    title: str
    sentences: Sequence[str]
    caption: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    picture: Picture | None
    settings: Sequence[tuple[str, str]]


def render_page(
    title: str, sections: Sequence[Section], notes: Sequence[str], versions: Sequence[tuple[str, str]]
) -> str:
    """The whole page.

    Args:
        title: of the page.
        sections: one a protocol.
        notes: what was left out.
        versions: name and version of what made it.
    """
    environment = Environment(
        loader=PackageLoader(__name__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files(__name__).joinpath("page.js").read_text(encoding="utf-8")
    style = files(__name__).joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        title=title, sections=sections, notes=notes, versions=versions, script=script, style=style
    )
