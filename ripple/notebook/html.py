"""What objects show in a notebook cell: a picture beside the facts that matter, on less than a screen."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ripple.report.cards import png_uri

#: Lines of facts, and letters of each, so that a cell never fills the screen.
_LINES, _LETTERS = 12, 160


def page(title: str, facts: Mapping[str, Any], picture: bytes | None = None, alt: str = "") -> str:
    """An HTML fragment.

    Parameters
    ----------
    title
        One line.
    facts
        Label -> value; at most twelve are shown.
    picture
        PNG file, shown at most 380 px high.
    alt
        What the picture shows, for screen readers.
    """
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;padding:0 1em 0 0">{escape(str(name))}</th>'
        f'<td style="text-align:left">{escape(_short(value))}</td></tr>'
        for name, value in list(facts.items())[:_LINES]
    )
    table = f"<table><caption style='text-align:left'><b>{escape(title)}</b></caption>{rows}</table>"
    image = "" if picture is None else _image(picture, alt)
    return f'<div style="display:flex;gap:1em;align-items:flex-start;flex-wrap:wrap">{image}{table}</div>'


def _image(picture: bytes, alt: str) -> str:
    style = "max-height:380px;max-width:100%"
    return f'<img src="{png_uri(picture)}" alt="{escape(alt, quote=True)}" style="{style}"/>'


def _short(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
