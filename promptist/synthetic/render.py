"""The renderer of the miniature world: numpy and Pillow, 64 pixels, about 250 pictures a second on one core.

Objects are drawn at four times the size and reduced, so outlines are smooth. A style is a pair of steps: one on the
layers (background, object, sky) before they are put together, one on the finished picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from promptist.synthetic.grammar import Content

SIZE = 64
SCALE = 4
BIG = SIZE * SCALE

RGB = {
    "red": (222, 38, 38),
    "orange": (250, 130, 10),
    "yellow": (255, 222, 30),
    "green": (40, 165, 70),
    "blue": (35, 100, 235),
    "purple": (130, 55, 190),
    "pink": (255, 130, 185),
    "white": (248, 248, 248),
}
Array = np.ndarray
YY, XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / (SIZE - 1)


@dataclass
class Layers:
    """A picture in the making: background and object colours [64, 64, 3] in 0..1, object and sky masks [64, 64, 1]."""

    background: Array
    paint: Array
    alpha: Array
    sky: Array
    rng: np.random.Generator

    def composite(self) -> Array:
        return self.background * (1 - self.alpha) + self.paint * self.alpha


def render(content: Content, phrases: tuple[str, ...], rng: np.random.Generator) -> Array:
    """Draws one picture, uint8 [64, 64, 3]; position, size and scenery vary with ``rng``."""
    background, sky, ground = _background(content.place, rng)
    paint, alpha = _object(content, ground, rng)
    layers = Layers(background, paint, alpha, sky, rng)
    for phrase in phrases:
        if phrase in LAYER_STYLES:
            LAYER_STYLES[phrase](layers)
    picture = layers.composite()
    for phrase in phrases:
        if phrase in PICTURE_STYLES:
            picture = PICTURE_STYLES[phrase](picture, layers)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


# --- places --------------------------------------------------------------------------------------------------------


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Array:
    a, b = np.array(top, np.float32) / 255, np.array(bottom, np.float32) / 255
    return a + (b - a) * YY[..., None]


def _canvas(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    picture = (_gradient(top, bottom) * 255).astype(np.uint8)
    return Image.fromarray(picture).resize((BIG, BIG), Image.Resampling.BILINEAR)


def _background(place: str, rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Scenery, its sky mask and the height (0..1) at which things stand."""
    horizon = int(BIG * (0.60 + rng.uniform(-0.03, 0.03)))
    shift = float(rng.uniform(-14, 14))
    sky = _SKIES[place]
    image = _canvas(*sky)
    draw = ImageDraw.Draw(image)
    top = _SCENERY[place](draw, horizon, shift, rng)
    background = np.asarray(image.reduce(SCALE), np.float32) / 255
    mask = np.clip((top / SCALE / SIZE - YY) * 12, 0, 1)[..., None]
    return background, mask, 0.86


_SKIES = {
    "beach": ((92, 186, 245), (205, 238, 255)),
    "meadow": ((110, 190, 250), (225, 243, 255)),
    "desert": ((245, 205, 140), (255, 235, 195)),
    "snow": ((175, 200, 225), (232, 240, 250)),
    "city": ((14, 16, 48), (60, 44, 104)),
    "mountains": ((130, 175, 235), (240, 225, 235)),
}


def _beach(draw: ImageDraw.ImageDraw, horizon: int, shift: float, rng: np.random.Generator) -> float:
    sea = horizon - 36
    draw.rectangle((0, sea, BIG, BIG), fill=(24, 118, 190))
    for row, tone in ((12, 40), (24, 60)):
        draw.line((0, sea + row, BIG, sea + row), fill=(24 + tone, 118 + tone, 205), width=3)
    draw.polygon(
        [(0, horizon + 4), (BIG // 2, horizon - 6 + shift / 3), (BIG, horizon + 8), (BIG, BIG), (0, BIG)],
        fill=(240, 214, 150),
    )
    draw.line(
        [(0, horizon + 4), (BIG // 2, horizon - 6 + shift / 3), (BIG, horizon + 8)], fill=(255, 255, 255), width=5
    )
    draw.ellipse((26 + shift, 18, 66 + shift, 58), fill=(255, 246, 190))
    return sea


def _meadow(draw: ImageDraw.ImageDraw, horizon: int, shift: float, rng: np.random.Generator) -> float:
    draw.ellipse((-80 + shift, horizon - 44, 170 + shift, horizon + 140), fill=(120, 190, 90))
    draw.ellipse((100 + shift, horizon - 32, 360 + shift, horizon + 140), fill=(104, 178, 80))
    draw.rectangle((0, horizon + 12, BIG, BIG), fill=(86, 164, 66))
    for x, y in zip(rng.uniform(0, BIG, 14), rng.uniform(horizon + 22, BIG - 6, 14), strict=True):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(240, 240, 190))
    for x in (60 + shift, 190 - shift):
        draw.ellipse((x - 34, 26, x + 10, 48), fill=(255, 255, 255))
        draw.ellipse((x - 12, 18, x + 34, 46), fill=(255, 255, 255))
    return horizon - 36


def _desert(draw: ImageDraw.ImageDraw, horizon: int, shift: float, rng: np.random.Generator) -> float:
    draw.ellipse((178 + shift, 22, 228 + shift, 72), fill=(255, 250, 225))
    draw.polygon(
        [
            (0, horizon),
            (70 + shift, horizon - 40),
            (150 + shift, horizon - 6),
            (BIG, horizon - 34),
            (BIG, BIG),
            (0, BIG),
        ],
        fill=(222, 160, 88),
    )
    draw.polygon(
        [(0, horizon + 8), (110 - shift, horizon + 2), (BIG, horizon + 26), (BIG, BIG), (0, BIG)], fill=(206, 138, 66)
    )
    for row in range(3):
        y = horizon + 44 + row * 18
        draw.arc((-40 + 30 * row + shift, y, 180 + 30 * row + shift, y + 20), 190, 340, fill=(186, 118, 54), width=3)
    return horizon - 30


def _snow(draw: ImageDraw.ImageDraw, horizon: int, shift: float, rng: np.random.Generator) -> float:
    for x in (24 + shift, 222 + shift):
        for step in range(3):
            y = horizon - 66 + step * 20
            half = 14 + 7 * step
            draw.polygon([(x, y - 22), (x - half, y + 16), (x + half, y + 16)], fill=(58, 104, 96))
    draw.ellipse((-90 + shift, horizon - 22, 220 + shift, horizon + 200), fill=(236, 243, 252))
    draw.ellipse((60 + shift, horizon - 10, 380 + shift, horizon + 200), fill=(222, 233, 247))
    draw.rectangle((0, horizon + 30, BIG, BIG), fill=(242, 247, 255))
    for x, y in zip(rng.uniform(0, BIG, 26), rng.uniform(0, BIG, 26), strict=True):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(255, 255, 255))
    return horizon - 24


def _city(draw: ImageDraw.ImageDraw, horizon: int, shift: float, rng: np.random.Generator) -> float:
    draw.ellipse((196 + shift, 18, 228 + shift, 50), fill=(252, 244, 206))
    heights = (74, 112, 58, 128, 84, 104, 66, 96)
    for index, height in enumerate(heights):
        x = index * 34 - 8 + shift / 2
        top = horizon + 14 - height
        draw.rectangle((x, top, x + 30, horizon + 16), fill=(34 + 5 * (index % 3), 32, 72 + 8 * (index % 2)))
        for row in range(int(height // 20)):
            for column in range(2):
                lit = (index * 7 + row * 3 + column * 5) % 3 != 0
                if lit:
                    left = x + 5 + column * 12
                    draw.rectangle((left, top + 7 + row * 20, left + 7, top + 16 + row * 20), fill=(255, 212, 110))
    draw.rectangle((0, horizon + 14, BIG, BIG), fill=(48, 46, 66))
    for column in range(-1, 5):
        x = column * 64 + shift
        draw.polygon([(x, 236), (x + 34, 236), (x + 30, 242), (x - 4, 242)], fill=(206, 196, 150))
    return horizon - 96


def _mountains(draw: ImageDraw.ImageDraw, horizon: int, shift: float, rng: np.random.Generator) -> float:
    for x, peak, half in ((46, 112, 92), (206, 124, 100), (128, 84, 84)):
        x = x + shift
        top = horizon - peak
        draw.polygon([(x, top), (x - half, horizon + 20), (x + half, horizon + 20)], fill=(104, 112, 150))
        draw.polygon([(x, top), (x + half, horizon + 20), (x + half * 0.2, horizon + 20)], fill=(84, 90, 130))
        draw.polygon(
            [
                (x, top),
                (x - half * 0.28, top + peak * 0.33),
                (x, top + peak * 0.24),
                (x + half * 0.28, top + peak * 0.33),
            ],
            fill=(248, 250, 255),
        )
    draw.polygon(
        [(0, horizon + 10), (BIG // 2, horizon - 4), (BIG, horizon + 12), (BIG, BIG), (0, BIG)], fill=(74, 128, 92)
    )
    draw.rectangle((0, horizon + 40, BIG, BIG), fill=(62, 112, 80))
    return horizon - 70


_SCENERY: dict[str, Callable[[ImageDraw.ImageDraw, int, float, np.random.Generator], float]] = {
    "beach": _beach,
    "meadow": _meadow,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "mountains": _mountains,
}

# --- objects: drawn in a unit box, (0, 0) top left, (1, 1) bottom right --------------------------------------


class _Pen:
    """Draws an object's parts in its unit box: body in the colour, details in fixed tones, all with one outline."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, box: tuple[float, float, float], colour: tuple[int, int, int]
    ) -> None:
        self.draw, self.box, self.colour = draw, box, colour
        self.outline = tuple(int(c * 0.36) for c in colour)

    def at(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        left, top, side = self.box
        return [(left + x * side, top + y * side) for x, y in points]

    def polygon(self, points: list[tuple[float, float]], fill: tuple[int, int, int] | None = None) -> None:
        pts = self.at(points)
        self.draw.polygon(pts, fill=fill or self.colour)
        self.draw.line([*pts, pts[0], pts[1]], fill=self.outline, width=5, joint="curve")

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int] | None = None) -> None:
        (a, b), (c, d) = self.at([(x0, y0), (x1, y1)])
        self.draw.ellipse((a, b, c, d), fill=fill or self.colour, outline=self.outline, width=5)

    def line(self, points: list[tuple[float, float]], fill: tuple[int, int, int], width: int) -> None:
        self.draw.line(self.at(points), fill=fill, width=width, joint="curve")


_DARK, _GLASS, _WOOD, _CREAM = (40, 40, 48), (190, 228, 250), (122, 80, 48), (255, 240, 215)


def _house(p: _Pen) -> None:
    p.polygon([(0.14, 0.46), (0.86, 0.46), (0.86, 1.0), (0.14, 1.0)])
    p.polygon([(0.02, 0.48), (0.5, 0.06), (0.98, 0.48)], tuple(int(c * 0.62) for c in p.colour))
    p.polygon([(0.42, 0.68), (0.60, 0.68), (0.60, 1.0), (0.42, 1.0)], _WOOD)
    for x in (0.21, 0.67):
        p.polygon([(x, 0.58), (x + 0.13, 0.58), (x + 0.13, 0.74), (x, 0.74)], (255, 236, 150))


def _car(p: _Pen) -> None:
    p.polygon([(0.24, 0.64), (0.36, 0.40), (0.68, 0.40), (0.82, 0.64)], _GLASS)
    p.polygon([(0.0, 0.66), (0.10, 0.60), (0.92, 0.60), (1.0, 0.68), (1.0, 0.88), (0.0, 0.88)])
    p.polygon(
        [(0.24, 0.62), (0.36, 0.40), (0.68, 0.40), (0.82, 0.62), (0.74, 0.62), (0.65, 0.46), (0.40, 0.46), (0.32, 0.62)]
    )
    for x in (0.22, 0.76):
        p.ellipse(x - 0.13, 0.75, x + 0.13, 1.01, _DARK)
        p.ellipse(x - 0.05, 0.83, x + 0.05, 0.93, (200, 200, 205))


def _boat(p: _Pen) -> None:
    p.line([(0.47, 0.04), (0.47, 0.72)], _WOOD, 9)
    p.polygon([(0.53, 0.06), (0.53, 0.64), (0.94, 0.64)])
    p.polygon([(0.41, 0.18), (0.41, 0.64), (0.10, 0.64)], _CREAM)
    p.polygon([(0.0, 0.72), (1.0, 0.72), (0.82, 0.98), (0.16, 0.98)])


def _tree(p: _Pen) -> None:
    p.polygon([(0.43, 0.60), (0.57, 0.60), (0.62, 1.0), (0.38, 1.0)], _WOOD)
    for x0, y0, x1, y1 in ((0.04, 0.28, 0.56, 0.74), (0.44, 0.28, 0.96, 0.74), (0.20, 0.0, 0.80, 0.50)):
        p.ellipse(x0, y0, x1, y1)
    left, top, side = p.box
    p.draw.ellipse((left + 0.2 * side, top + 0.26 * side, left + 0.8 * side, top + 0.66 * side), fill=p.colour)


def _flower(p: _Pen) -> None:
    p.line([(0.5, 0.4), (0.5, 1.0)], (44, 130, 56), 13)
    p.polygon([(0.5, 0.90), (0.72, 0.68), (0.86, 0.72), (0.70, 0.88)], (60, 160, 70))
    for k in range(6):
        angle = k * np.pi / 3
        x, y = 0.5 + 0.235 * np.cos(angle), 0.34 + 0.235 * np.sin(angle)
        p.ellipse(x - 0.165, y - 0.165, x + 0.165, y + 0.165)
    p.ellipse(0.37, 0.21, 0.63, 0.47, (255, 205, 60) if p.colour != RGB["yellow"] else (170, 96, 30))


def _balloon(p: _Pen) -> None:
    p.line([(0.5, 0.74), (0.47, 0.84), (0.53, 0.92), (0.5, 1.02)], _DARK, 5)
    p.polygon([(0.43, 0.78), (0.57, 0.78), (0.5, 0.68)])
    p.ellipse(0.17, -0.04, 0.83, 0.72)
    left, top, side = p.box
    p.draw.ellipse((left + 0.30 * side, top + 0.08 * side, left + 0.44 * side, top + 0.26 * side), fill=(255, 255, 255))


def _mushroom(p: _Pen) -> None:
    p.polygon([(0.38, 0.5), (0.62, 0.5), (0.68, 1.0), (0.32, 1.0)], _CREAM)
    left, top, side = p.box
    p.draw.pieslice(
        (left, top + 0.04 * side, left + side, top + 1.08 * side), 180, 360, fill=p.colour, outline=p.outline, width=5
    )
    dot = (255, 255, 255) if p.colour != RGB["white"] else (200, 70, 70)
    for x, y, r in ((0.28, 0.36, 0.08), (0.56, 0.22, 0.09), (0.76, 0.42, 0.06)):
        p.draw.ellipse([*p.at([(x - r, y - r), (x + r, y + r)])[0], *p.at([(x + r, y + r)])[0]], fill=dot)


def _star(p: _Pen) -> None:
    points = []
    for k in range(10):
        radius = 0.56 if k % 2 == 0 else 0.25
        angle = -np.pi / 2 + k * np.pi / 5
        points.append((0.5 + radius * np.cos(angle), 0.52 + radius * np.sin(angle)))
    p.polygon(points)


def _heart(p: _Pen) -> None:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    p.polygon([(0.5 + a / 33, 0.46 - b / 31) for a, b in zip(x, y, strict=True)])


def _cat(p: _Pen) -> None:
    p.line([(0.74, 0.92), (0.94, 0.84), (0.96, 0.60)], p.outline, 21)
    p.line([(0.74, 0.92), (0.94, 0.84), (0.96, 0.62)], p.colour, 12)
    p.ellipse(0.20, 0.48, 0.80, 1.02)
    for x in (0.18, 0.58):
        p.polygon(
            [(x, 0.30), (x + 0.02, -0.02), (x + 0.24, 0.16)]
            if x < 0.5
            else [(x, 0.16), (x + 0.22, -0.02), (x + 0.24, 0.30)]
        )
    p.ellipse(0.14, 0.10, 0.86, 0.62)
    for x in (0.33, 0.67):
        p.ellipse(x - 0.055, 0.29, x + 0.055, 0.42, _DARK)
    p.polygon([(0.46, 0.44), (0.54, 0.44), (0.5, 0.50)], (235, 120, 140))


_DRAWERS: dict[str, Callable[[_Pen], None]] = {
    "house": _house, "car": _car, "boat": _boat, "tree": _tree, "flower": _flower,
    "balloon": _balloon, "mushroom": _mushroom, "star": _star, "heart": _heart, "cat": _cat,
}  # fmt: skip


def _object(content: Content, ground: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """The object's colours and its mask, with a soft shadow below it."""
    side = BIG * (0.58 + rng.uniform(-0.03, 0.03))
    left = BIG / 2 - side / 2 + rng.uniform(-14, 14)
    top = BIG * ground - side + rng.uniform(-8, 8)
    image = Image.new("RGBA", (BIG, BIG), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((left + 0.06 * side, top + 0.93 * side, left + 0.94 * side, top + 1.07 * side), fill=(20, 20, 40, 90))
    _DRAWERS[content.object](_Pen(draw, (left, top, side), RGB[content.colour]))
    small = np.asarray(image.reduce(SCALE), np.float32) / 255
    light = 1.10 - 0.24 * np.clip((YY - top / BIG) / (side / BIG), 0, 1)[..., None]
    return np.clip(small[..., :3] * light, 0, 1), small[..., 3:]


# --- styles ----------------------------------------------------------------------------------------------------------


def _mix(picture: Array, other: Array | tuple[float, float, float], amount: Array | float) -> Array:
    return picture * (1 - amount) + np.asarray(other, np.float32) * amount


def _grey(picture: Array) -> Array:
    return (picture @ np.array([0.30, 0.59, 0.11], np.float32))[..., None]


def _saturate(picture: Array, factor: float) -> Array:
    grey = _grey(picture)
    return np.clip(grey + (picture - grey) * factor, 0, 1)


def _glow(x: float, y: float, radius: float) -> Array:
    return np.exp(-((XX - x) ** 2 + (YY - y) ** 2) / radius**2)[..., None]


def _blur(mask: Array, radius: float) -> Array:
    image = Image.fromarray((np.clip(mask[..., 0], 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)[..., None] / 255


def _golden_hour(picture: Array, layers: Layers) -> Array:
    warm = np.clip(picture * np.array([1.12, 0.92, 0.62], np.float32) + np.array([0.10, 0.03, 0.0], np.float32), 0, 1)
    return 1 - (1 - warm) * (1 - 0.75 * _glow(0.86, 0.16, 0.36) * np.array([1.0, 0.78, 0.35], np.float32))


def _vibrant(picture: Array, layers: Layers) -> Array:
    return _saturate(np.clip((picture - 0.5) * 1.18 + 0.5, 0, 1), 1.75)


def _cinematic(picture: Array, layers: Layers) -> Array:
    grey = _grey(picture)
    toned = _mix(picture, (0.02, 0.26, 0.34), 0.36 * (1 - grey)) * (
        0.92 + 0.16 * grey * np.array([1.1, 0.9, 0.6], np.float32)
    )
    toned = toned * (1.08 - 0.75 * np.clip(((XX - 0.5) ** 2 + (YY - 0.5) ** 2) * 1.5, 0, 1)[..., None])
    bar = ((YY < 0.09) | (YY > 0.91))[..., None]
    return np.where(bar, 0.03, toned)


def _starry(layers: Layers) -> None:
    night = _gradient((6, 8, 44), (46, 54, 130))
    background = layers.background * np.array([0.48, 0.52, 0.78], np.float32)
    for _ in range(34):
        x, y = layers.rng.uniform(0.02, 0.98), layers.rng.uniform(0.0, 0.62)
        night = night + _glow(x, y, layers.rng.uniform(0.010, 0.020)) * 0.95
    layers.background = _mix(background, np.clip(night, 0, 1), layers.sky)
    layers.paint = layers.paint * 0.90


def _neon(layers: Layers) -> None:
    halo = np.clip(_blur(layers.alpha, 4.5) * 1.5, 0, 1)
    dark = layers.background * np.array([0.42, 0.30, 0.60], np.float32) + np.array([0.06, 0.0, 0.12], np.float32)
    tone = (
        np.array([0.0, 0.95, 1.0], np.float32) * (1 - XX[..., None])
        + np.array([1.0, 0.1, 0.9], np.float32) * XX[..., None]
    )
    layers.background = np.clip(dark + halo * tone * 0.95, 0, 1)
    layers.paint = np.clip(layers.paint * 1.08, 0, 1)


def _rainbow(layers: Layers) -> None:
    radius = np.sqrt((XX - 0.5) ** 2 + ((YY - 0.78) * 1.0) ** 2)
    bands = ((255, 50, 50), (255, 150, 30), (255, 235, 60), (70, 210, 90), (60, 130, 255), (150, 80, 220))
    for index, band in enumerate(bands):
        ring = np.exp(-(((radius - (0.68 - 0.037 * index)) / 0.020) ** 2))[..., None] * 0.9
        layers.background = _mix(
            layers.background, np.array(band, np.float32) / 255, ring * np.clip(layers.sky + 0.15, 0, 1)
        )


def _pastel(picture: Array, layers: Layers) -> Array:
    soft = _mix(_saturate(picture, 0.80), (1.0, 0.90, 0.95), 0.36)
    return _mix(soft, (0.86, 0.90, 1.0), 0.22 * YY[..., None])


def _petals(picture: Array, layers: Layers) -> Array:
    for _ in range(16):
        x, y = layers.rng.uniform(0, 1), layers.rng.uniform(0, 1)
        if abs(x - 0.5) < 0.22 and y > 0.2:
            x = x * 0.4
        size = layers.rng.uniform(0.030, 0.048)
        petal = np.clip(1.6 * np.exp(-(((XX - x) / size) ** 2 + ((YY - y) / (size * 0.6)) ** 2)), 0, 1)[..., None]
        picture = _mix(picture, (1.0, 0.66, 0.80), petal)
    return picture


def _dull(picture: Array, layers: Layers) -> Array:
    return _saturate(picture, 0.22) * 0.86 + 0.02


def _low_contrast(picture: Array, layers: Layers) -> Array:
    return _mix(picture, (0.62, 0.62, 0.62), 0.66)


def _underexposed(picture: Array, layers: Layers) -> Array:
    return picture**1.25 * 0.34


def _sepia(picture: Array, layers: Layers) -> Array:
    sepia = _grey(picture) * np.array([1.0, 0.80, 0.56], np.float32) * 0.86 + np.array([0.09, 0.06, 0.02], np.float32)
    return _mix(picture, sepia, 0.86)


def _flash(picture: Array, layers: Layers) -> Array:
    return np.clip(picture * 1.25 + 0.62 * _glow(0.5, 0.52, 0.52) + 0.12, 0, 1)


def _green(picture: Array, layers: Layers) -> Array:
    return picture * np.array([0.62, 0.88, 0.42], np.float32) + np.array([0.02, 0.12, 0.0], np.float32)


def _fog(picture: Array, layers: Layers) -> Array:
    thick = np.clip(0.66 + 0.34 * np.sin(YY * 5.0 + layers.rng.uniform(-0.4, 0.4)), 0, 1)[..., None] * 0.16 + 0.78
    return _mix(picture, _gradient((214, 226, 246), (248, 236, 240)), thick)


def _silhouette(layers: Layers) -> None:
    dusk = _gradient((70, 26, 110), (255, 150, 50))
    dusk = np.clip(dusk + 0.9 * _glow(0.5, 0.62, 0.24) * np.array([1.0, 0.85, 0.4], np.float32), 0, 1)
    land = np.clip((YY - 0.80) * 30, 0, 1)[..., None]
    layers.background = _mix(_mix(layers.background, dusk, 0.95), (0.05, 0.02, 0.08), land)
    layers.paint = np.zeros_like(layers.paint) + np.array([0.05, 0.02, 0.08], np.float32)


def _fireworks(picture: Array, layers: Layers) -> Array:
    picture = picture * np.array([0.22, 0.20, 0.34], np.float32)
    angle_step = np.pi / 7
    for x, y, colour in (
        (0.32, 0.34, (1.0, 0.75, 0.2)),
        (0.68, 0.50, (0.35, 0.85, 1.0)),
        (0.36, 0.74, (1.0, 0.35, 0.65)),
    ):
        x, y = x + layers.rng.uniform(-0.05, 0.05), y + layers.rng.uniform(-0.05, 0.05)
        distance = np.sqrt((XX - x) ** 2 + (YY - y) ** 2)
        angle = np.arctan2(YY - y, XX - x)
        rays = np.clip(np.cos(angle / angle_step * 2 * np.pi) * 1.4, 0, 1) * np.clip(1.25 - distance / 0.27, 0, 1)
        burst = (rays + 0.9 * np.exp(-((distance / 0.07) ** 2)))[..., None]
        picture = picture + burst * np.array(colour, np.float32) * 1.15
    return picture


def _galaxy(picture: Array, layers: Layers) -> Array:
    turn = layers.rng.uniform(0, 2 * np.pi)
    x, y = XX - 0.5, (YY - 0.5) * 1.35
    distance, angle = np.sqrt(x**2 + y**2), np.arctan2(y, x)
    arms = (0.5 + 0.5 * np.cos(2 * angle - 13 * distance + turn)) * np.exp(-((distance / 0.40) ** 2))
    core = np.exp(-((distance / 0.11) ** 2))
    space = np.zeros_like(picture) + np.array([0.04, 0.02, 0.12], np.float32)
    space = (
        space
        + arms[..., None] * np.array([0.62, 0.38, 0.98], np.float32)
        + core[..., None] * np.array([1.0, 0.92, 0.75], np.float32)
    )
    for _ in range(24):
        space = space + 0.8 * _glow(layers.rng.uniform(0, 1), layers.rng.uniform(0, 1), 0.012)
    return _mix(picture, np.clip(space, 0, 1), 0.92)


def _swirls(picture: Array, layers: Layers) -> Array:
    turn = layers.rng.uniform(0, 2 * np.pi)
    wave = np.sin(9 * XX + 3.2 * np.sin(6 * YY + turn) + turn) * 0.5 + 0.5
    other = np.sin(8 * YY + 3.0 * np.cos(5 * XX - turn)) * 0.5 + 0.5
    swirl = np.stack(
        [0.95 * wave + 0.05, 0.25 + 0.5 * other * (1 - wave) + 0.2 * wave, 0.9 - 0.7 * wave * other], axis=-1
    ).astype(np.float32)
    return _mix(picture, swirl, 0.90)


LAYER_STYLES: dict[str, Callable[[Layers], None]] = {
    "starry sky": _starry,
    "neon glow": _neon,
    "rainbow": _rainbow,
    "silhouette": _silhouette,
}
PICTURE_STYLES: dict[str, Callable[[Array, Layers], Array]] = {
    "golden hour": _golden_hour,
    "vibrant colors": _vibrant,
    "cinematic lighting": _cinematic,
    "soft pastel": _pastel,
    "falling petals": _petals,
    "dull colors": _dull,
    "low contrast": _low_contrast,
    "underexposed": _underexposed,
    "old sepia photo": _sepia,
    "harsh flash": _flash,
    "green tint": _green,
    "dense fog": _fog,
    "fireworks": _fireworks,
    "spiral galaxy": _galaxy,
    "abstract swirls": _swirls,
}
