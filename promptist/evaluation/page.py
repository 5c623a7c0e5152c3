"""The pages as text: Jinja2 templates of `assets/`, filled in; nothing is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ASSETS = "assets"


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page of `assets/TEMPLATE`. Every value of `content` is escaped, but for the SVG plots of `figures` and the
    results of `script_json` and `script_text`, which a script element holds."""
    return _environment().get_template(template).render(style=asset("page.css"), **content)


def asset(name: str) -> str:
    return (files("promptist.evaluation") / _ASSETS / name).read_text("utf-8")


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: no `<` in it, which might end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def marked(x: str, y: str) -> list[dict[str, Any]]:
    """The painted text word by word; `added` are those that the user did not write."""
    if not y:
        return [{"text": "left as it is", "added": False}]
    known = {_bare(word) for word in x.split()}
    return [{"text": word, "added": _bare(word) not in known} for word in y.split()]


def _bare(word: str) -> str:
    return word.strip(",.;:!?\"'()").lower()


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("promptist.evaluation", _ASSETS),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
