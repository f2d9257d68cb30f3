"""The report as one HTML page: no network, readable in dark and light, by keyboard, on a phone and on paper.

Everything on it is text that Jinja escapes, or a picture inside the page. Template, style and script lie beside this file; the
script only sorts and filters, the page says everything without it. The Content-Security-Policy lets this one style and this one
script run, by their digests, and nothing else: a name that slipped through the escaping could still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from .blocks import Page

__all__ = ["render_page"]


def render_page(page: Page) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=PackageLoader(__name__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (files(__name__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        page=page, style=style, script=script, style_digest=_digest(style), script_digest=_digest(script)
    )


def _digest(text: str) -> str:
    """As a Content-Security-Policy takes it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
