"""LaTeX as MathML, which a browser shows without any script or font of ours."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape

from latex2mathml.converter import convert
from markupsafe import Markup

_NAMESPACE = ' xmlns="http://www.w3.org/1998/Math/MathML"'  # needless in HTML, and long

_OPERATOR = re.compile(r"\\operatorname\{((?:[^{}]|\{[^{}]*\})*)\}")


def _upright(operator: re.Match[str]) -> str:
    """An operator's name as text: the converter knows names of letters only, and sets log1p in italics."""
    name = operator[1].replace(r"\,", " ").replace(r"\_", "_").replace("^{2}", "²")
    return rf"\text{{{name}}}"


@lru_cache(maxsize=8192)
def mathml(latex: str, display: str = "block") -> Markup:
    """The formula as a <math> element; as source where it cannot be converted.

    Args:
        display: "block" or "inline".
    """
    try:
        element = convert(_OPERATOR.sub(_upright, latex), display=display)
    except Exception:  # the converter's errors share no base; a formula in LaTeX is still a formula
        return Markup("<code>{}</code>").format(latex)
    return Markup(element.replace(_NAMESPACE, f' alttext="{escape(latex)}"', 1))
