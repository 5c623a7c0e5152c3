"""Random scenes: what is in a training picture and how it is captioned. Every draw is the generator's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promptist.synthetic import grammar
from promptist.synthetic.grammar import Content
from promptist.synthetic.render import SIZE, render

TRAIN_CONTENTS = tuple(content for content in grammar.contents() if not grammar.is_held_out(content))
HELD_OUT_CONTENTS = tuple(content for content in grammar.contents() if grammar.is_held_out(content))
_NUMBER_OF_MODIFIERS = (0.34, 0.36, 0.18, 0.12)  # probability of 0, 1, 2, 3 modifiers in a training picture


@dataclass(frozen=True)
class Scene:
    content: Content
    phrases: tuple[str, ...]


def sample_scene(rng: np.random.Generator) -> Scene:
    """A content of the training split with up to three modifiers."""
    content = TRAIN_CONTENTS[rng.integers(len(TRAIN_CONTENTS))]
    number = int(rng.choice(len(_NUMBER_OF_MODIFIERS), p=_NUMBER_OF_MODIFIERS))
    chosen = rng.choice(len(grammar.MODIFIERS), size=number, replace=False)
    return Scene(content, tuple(grammar.MODIFIERS[index].phrase for index in chosen))


def sample_caption(content: Content, rng: np.random.Generator, *, labels: float = 0.12) -> str:
    """A caption from any template; with probability ``labels`` a bare label that leaves place (and colour) open."""
    if rng.random() < labels:
        template = grammar.LABEL_TEMPLATES[rng.integers(len(grammar.LABEL_TEMPLATES))]
    else:
        templates = grammar.USER_TEMPLATES if rng.random() < 0.6 else grammar.CAPTION_TEMPLATES
        template = templates[rng.integers(len(templates))]
    return grammar.caption(content, template, int(rng.integers(6)), int(rng.integers(6)))


def sample_prompt(scene: Scene, rng: np.random.Generator, *, labels: float = 0.12) -> str:
    """The full prompt of a picture: caption, then its modifiers."""
    return grammar.prompt(sample_caption(scene.content, rng, labels=labels), scene.phrases)


def render_scenes(scenes: list[Scene], rng: np.random.Generator) -> np.ndarray:
    """float32 [N, 3, 64, 64] in -1..1, as diffusers' VAEs take them."""
    pictures = np.empty((len(scenes), 3, SIZE, SIZE), np.float32)
    for index, scene in enumerate(scenes):
        pictures[index] = render(scene.content, scene.phrases, rng).transpose(2, 0, 1)
    return pictures / 127.5 - 1


def corpus(count: int, rng: np.random.Generator) -> list[str]:
    """Prompts to train tokenizers on: all templates, synonyms, phrases and modifiers occur."""
    return [sample_prompt(sample_scene(rng), rng) for _ in range(count)]
