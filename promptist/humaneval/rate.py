"""The folder that raters get: one static page and its pictures, and nothing that tells a method.

Pictures are written anew (pixels only, no metadata), named by opaque ids, all with the same modes and times.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from promptist.errors import UserError
from promptist.evaluation.table import Table
from promptist.humaneval.study import KEY, Study, study_hash

_TIME = 946_684_800  # 2000-01-01: when a file was written must not say in which order


def load(path: Path) -> Image.Image:
    """The pixels of a kept picture, RGB."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise UserError(f"the picture {path} cannot be read ({error}): evaluate again") from None


def identical(one: Path, other: Path) -> bool:
    """Whether two pictures have the same pixels. UserError where they differ in size, which would tell them apart."""
    a, b = load(one), load(other)
    if a.size != b.size:
        raise UserError(f"{one} has {a.size} pixels and {other} {b.size}: raters would see which is which")
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def write(folder: Path, study: Study, table: Table, evaluation: Path) -> Study:
    """Write `folder` with `rate/` and `key.json`: whole or not at all. Returns the study with its hash."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists already: ratings belong to the study they were made for, choose another --out"
        )
    part = folder.with_name(folder.name + ".part")
    if part.exists():
        raise UserError(f"{part} is left from a study that was not finished: delete it and try again")
    pictures = part / "rate" / "pictures"
    pictures.mkdir(parents=True)
    paths = {(p.prompt, p.method, p.replica, p.seed): p.path for p in table.pictures}
    source = {}
    for pair in study.shown:
        for name, method, replica in zip(pair.pictures, (pair.first, pair.second), pair.replicas, strict=True):
            source[name] = evaluation / paths[pair.prompt, method, replica, pair.noise]
    hashes = {}
    for name in sorted(source):
        data = _png(source[name])
        hashes[name] = hashlib.sha256(data).hexdigest()
        _file(pictures / f"{name}.png", data)
    study = replace(study, hash=study_hash(study.public(), hashes))
    _file(part / "rate" / "index.html", page(study).encode())
    for directory in (pictures, part / "rate"):
        os.utime(directory, (_TIME, _TIME))
    study.write(part / KEY)
    if folder.is_dir():
        folder.rmdir()
    os.replace(part, folder)
    return study


def page(study: Study) -> str:
    """`index.html`. Script and style are inside, allowed by their hashes; the browser refuses everything else, any
    network among it."""
    room = files("promptist.humaneval") / "page"
    script, style = ((room / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    data = json.dumps({"study": study.hash, **study.public()}, ensure_ascii=False)
    environment = Environment(undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True)
    return environment.from_string((room / "index.html").read_text(encoding="utf-8")).render(
        script=script,
        style=style,
        script_hash=_csp_hash(script),
        style_hash=_csp_hash(style),
        data=data.replace("<", "\\u003c"),  # no prompt can end the element
        raters=len(study.orders),
    )


def _png(path: Path) -> bytes:
    out = io.BytesIO()
    pixels = load(path)
    pixels.info.clear()
    pixels.save(out, "PNG", optimize=True)
    return out.getvalue()


def _file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)
    os.utime(path, (_TIME, _TIME))


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
