"""Writes formulas as MathML when the site is built: browsers draw it by themselves, without scripts or the internet."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what pymdownx.arithmatex marked."""
    return _FORMULA.sub(_to_mathml, content)


def _to_mathml(match: re.Match[str]) -> str:
    kind, formula = match.groups()
    return convert(html.unescape(formula).strip(), display="block" if kind == "div" else "inline")
