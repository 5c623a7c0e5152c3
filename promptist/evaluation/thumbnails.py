"""Pictures of a page: embedded small, as many as its budget of bytes allows; the originals stay beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from promptist.errors import UserError

FORMAT = "WEBP"
LARGE = 224
"""Pixels of the pictures that a page shows without being asked."""


@dataclass(frozen=True)
class Size:
    """Longest side in pixels, and WebP quality of 100."""

    pixels: int
    quality: int


SIZES = [Size(144, 68), Size(128, 65), Size(112, 62), Size(96, 60), Size(80, 50), Size(64, 45)]
"""From the best on; the smallest is what still shows the content."""
PROBES = 48

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` items at even distances: a choice that looks at no score."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def load(path: Path, pixels: int | None = None) -> Image.Image:
    """A picture in RGB, no smaller than `pixels` where it is larger; UserError naming a file that is no picture."""
    try:
        with Image.open(path) as picture:
            if pixels is not None:
                picture.draft("RGB", (pixels, pixels))  # JPEG: decode no more than is needed
            return picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): delete it, and evaluate again") from None


def encode(path: Path, size: Size) -> bytes:
    """A picture as WebP, no side longer than `size.pixels`."""
    small = load(path, size.pixels)
    small.thumbnail((size.pixels, size.pixels), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, FORMAT, quality=size.quality, method=4)
    return out.getvalue()


def data_uri(path: Path, size: Size = Size(LARGE, 78)) -> str:
    return "data:image/webp;base64," + base64.b64encode(encode(path, size)).decode()


def choose(paths: Sequence[Path], budget: int) -> tuple[Size, int]:
    """The best size in which all of `paths` take at most `budget` bytes as base64, and how many of them fit: fewer
    than all only in the smallest size. Measured on a sample at even distances."""
    if not paths:
        return SIZES[0], 0
    probes = spread(paths, PROBES)
    for size in SIZES:
        each = sum(4 * -(-len(encode(path, size)) // 3) for path in probes) / len(probes)
        if each * len(paths) <= budget:
            return size, len(paths)
    return SIZES[-1], int(budget / each)
