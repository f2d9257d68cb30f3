"""The report as one HTML page: no network, readable in dark and light, by keyboard, on a phone and on paper.

Everything on it is text that Jinja escapes, or a picture inside the page. Template, style and script lie beside this file. The
script only sorts and filters; the page is complete without it. The Content-Security-Policy lets this one style and this one script
run, by their digests, and nothing else: a name that was not escaped could still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from .blocks import Group, data_uri

__all__ = ["render_page"]


def render_page(
    title: str, lead: str, groups: Sequence[Group], notes: Sequence[str], versions: Sequence[tuple[str, str]]
) -> str:
    """The whole page as HTML.

    Args:
        title: title of the page.
        lead: one sentence under it.
        groups: one for each protocol.
        notes: what was left out.
        versions: names and versions of packages.
    """
    content = dict(locals())
    environment = Environment(
        loader=PackageLoader(__name__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": lambda block: type(block).__name__, "uri": data_uri}
    style, script = (files(__name__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        **content, style=style, script=script, style_digest=_digest(style), script_digest=_digest(script)
    )


def _digest(text: str) -> str:
    """In the form of a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
