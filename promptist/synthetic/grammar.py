"""The language of the miniature world: contents, style modifiers, sentence templates and the held-out split.

A *content* is one object in one colour at one place. A *caption* names a content in one of several sentence templates;
a *prompt* is a caption followed by comma-separated style modifiers. Every fifth content is held out of all training
(pictures, captions and prompt pairs alike), so evaluation asks for combinations nobody has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

OBJECTS = ("house", "car", "boat", "tree", "flower", "balloon", "mushroom", "star", "heart", "cat")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PLACES = ("beach", "meadow", "desert", "snow", "city", "mountains")

PLACE_PHRASES = {
    "beach": ("on the beach", "by the sea", "on a sandy shore"),
    "meadow": ("in a meadow", "on green grass", "in a field"),
    "desert": ("in the desert", "among the dunes", "on desert sand"),
    "snow": ("in the snow", "on a snowy hill", "in a winter land"),
    "city": ("in the city at night", "in a night city", "among city lights"),
    "mountains": ("in the mountains", "below the peaks", "in an alpine valley"),
}
OBJECT_WORDS = {
    "house": ("house", "home"),
    "car": ("car", "automobile"),
    "boat": ("boat", "sailboat"),
    "tree": ("tree",),
    "flower": ("flower", "blossom"),
    "balloon": ("balloon",),
    "mushroom": ("mushroom", "toadstool"),
    "star": ("star",),
    "heart": ("heart",),
    "cat": ("cat", "kitten"),
}

# Sentence templates that users of the miniature world write (in-domain) ...
USER_TEMPLATES = (
    "a {colour} {object} {place}",
    "{colour} {object} {place}",
    "the {colour} {object} {place}",
    "{colour} {object}, {place}",
)
# ... and those of another caption source, which supervised fine-tuning never sees (the role COCO plays in the paper).
CAPTION_TEMPLATES = (
    "there is a {object} {place} and it is {colour}",
    "{place} stands a single {object} coloured {colour}",
    "a picture of one {object}, {colour}, seen {place}",
    "someone placed a {colour} {object} {place} for this picture",
)
LABEL_TEMPLATES = ("{object}", "{colour} {object}")  # the role ImageNet-21k labels play


@dataclass(frozen=True, order=True)
class Content:
    """One object in one colour at one place."""

    object: str
    colour: str
    place: str


@dataclass(frozen=True)
class Modifier:
    """A style modifier: its phrase, its sort and what it does to the procedural rating.

    ``sort`` is ``raise``, ``neutral``, ``lower`` or ``hide`` (raises the rating but hides or replaces the content).
    ``effect`` is in units of the rating; ``by_place`` and ``by_object`` add to it for some contents.
    """

    phrase: str
    sort: str
    effect: float
    by_place: tuple[tuple[str, float], ...] = ()
    by_object: tuple[tuple[str, float], ...] = ()

    def effect_on(self, content: Content) -> float:
        return self.effect + dict(self.by_place).get(content.place, 0.0) + dict(self.by_object).get(content.object, 0.0)


MODIFIERS = (
    Modifier("golden hour", "raise", 0.9, by_place=(("city", -0.9), ("beach", 0.2))),
    Modifier("vibrant colors", "raise", 0.7, by_object=(("flower", 0.3), ("balloon", 0.2), ("cat", -0.3))),
    Modifier("cinematic lighting", "raise", 0.8, by_object=(("car", 0.3), ("house", 0.2))),
    Modifier("starry sky", "raise", 0.9, by_place=(("city", -0.5), ("desert", 0.3))),
    Modifier("neon glow", "raise", 0.4, by_place=(("city", 0.8), ("meadow", -0.9), ("mountains", -0.6))),
    Modifier("rainbow", "raise", 0.7, by_place=(("city", -0.6), ("meadow", 0.3))),
    Modifier("soft pastel", "raise", 0.6, by_place=(("desert", -0.4),), by_object=(("heart", 0.2),)),
    Modifier("falling petals", "raise", 0.8, by_place=(("snow", -0.4),), by_object=(("tree", 0.3),)),
    Modifier("digital art", "neutral", 0.0),
    Modifier("4k", "neutral", 0.0),
    Modifier("trending on artstation", "neutral", 0.0),
    Modifier("concept art", "neutral", 0.0),
    Modifier("dull colors", "lower", -0.9),
    Modifier("low contrast", "lower", -0.9, by_place=(("snow", 0.3),)),
    Modifier("underexposed", "lower", -0.9, by_place=(("city", -0.3),)),
    Modifier("old sepia photo", "lower", -0.7, by_place=(("desert", 0.3),)),
    Modifier("harsh flash", "lower", -0.8),
    Modifier("green tint", "lower", -0.8),
    Modifier("dense fog", "hide", 0.9),
    Modifier("silhouette", "hide", 0.9),
    Modifier("fireworks", "hide", 1.1),
    Modifier("spiral galaxy", "hide", 1.3),
    Modifier("abstract swirls", "hide", 0.9),
)
MODIFIER_BY_PHRASE = {modifier.phrase: modifier for modifier in MODIFIERS}

BASE_RATING = 5.0
# Each further modifier of one sign counts less: tastes saturate, and so do the pictures.
SATURATION = 0.6


def contents() -> list[Content]:
    """All contents in a fixed order."""
    return [Content(*parts) for parts in product(OBJECTS, COLOURS, PLACES)]


def is_held_out(content: Content) -> bool:
    """Every fifth content, in a Latin pattern: each object, colour, place and pair of them stays in training."""
    index = OBJECTS.index(content.object) + COLOURS.index(content.colour) + 2 * PLACES.index(content.place)
    return index % 5 == 0


def rating(content: Content, phrases: tuple[str, ...]) -> float:
    """The procedural human rating of a picture with these modifiers, before rater noise (about 3 to 8)."""
    effects = [MODIFIER_BY_PHRASE[phrase].effect_on(content) for phrase in phrases]
    total = 0.0
    for sign in (1, -1):
        part = sorted((effect for effect in effects if effect * sign > 0), key=abs, reverse=True)
        total += sum(effect * SATURATION**rank for rank, effect in enumerate(part))
    return BASE_RATING + total


def caption(content: Content, template: str, object_word: int = 0, place_phrase: int = 0) -> str:
    """The caption of a content: a template with the chosen synonym of the object and phrase of the place."""
    return template.format(
        colour=content.colour,
        object=OBJECT_WORDS[content.object][object_word % len(OBJECT_WORDS[content.object])],
        place=PLACE_PHRASES[content.place][place_phrase % len(PLACE_PHRASES[content.place])],
    )


def prompt(text: str, phrases: tuple[str, ...]) -> str:
    """A caption followed by its style modifiers."""
    return ", ".join((text, *phrases))
