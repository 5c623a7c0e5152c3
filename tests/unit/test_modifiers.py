"""Words of a prompt, and what a rewrite adds to it."""

from __future__ import annotations

import pytest

from promptist.data.modifiers import added, modifiers
from promptist.data.words import clauses, stem, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Red boat,  on the beach", ["a red boat", "on the beach"]),
        ("(red:1.2) boat, [sea:0.5], ((gold))", ["(red) boat", "[sea]", "((gold))"]),
        ("red::2 boat::-0.5 <lora:style:0.8> --ar 16:9 --v 5", ["red boat"]),
        ("trending on ArtStation | 8k; sharp\nhdr", ["trending on artstation", "8k", "sharp", "hdr"]),
        ("A logo. Shows a cat! At 4:30 it sleeps", ["a logo", "shows a cat", "at 4:30 it sleeps"]),
        ("1,000 cats, 4, 100", ["1000 cats", "4", "100"]),
        ("ﬁne －－ art, , .", ["fine -- art"]),  # compatibility characters are folded, empty clauses fall out
        (" , ", []),
    ],
)
def test_clauses(text: str, expected: list[str]) -> None:
    assert clauses(text) == expected


def test_words_part_at_hyphens_and_keep_units() -> None:
    assert words("4k blue-eyed cat's 1.5 x 50mm don't 16:9") == [
        "4k", "blue", "eyed", "cat's", "1.5", "x", "50mm", "don't", "16", "9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"), ("house", "houses"), ("glass", "glasses"), ("box", "boxes"), ("church", "churches"),
        ("pony", "ponies"), ("zombie", "zombies"), ("tomato", "tomatoes"), ("shoe", "shoes"),
        ("moustache", "moustaches"),
        ("bus", "buses"), ("horse", "horses"), ("prize", "prizes"), ("pie", "pies"), ("axe", "axes"),
        ("brush", "brushes"),
        ("cat", "cat's"), ("tree", "trees"), ("plane", "planes"),
    ],
)  # fmt: skip
def test_regular_plurals_are_one_word(one: str, many: str) -> None:
    assert stem(one) == stem(many)


@pytest.mark.parametrize(("one", "other"), [("plane", "plan"), ("glass", "gas"), ("car", "care"), ("star", "stare")])
def test_other_words_stay_apart(one: str, other: str) -> None:
    assert stem(one) != stem(other)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ("a red boat", "", []),
        ("a red boat", "a red boat", []),
        ("a red boat", "A red boat, golden hour, 4K", ["golden hour", "4k"]),
        # The same content in another order is nothing new, an addition within it is.
        ("there is a boat on the beach and it is red", "a red boat on the beach, rainbow", ["rainbow"]),
        ("a red boat", "a red boat in dramatic light, 8k", ["dramatic light", "8k"]),
        ("boat", "oil painting of a boat by monet", ["oil painting of a by monet"]),
        # Content in other words adds nothing: a word of x is lost, so what stands there replaces it.
        ("red house by the sea", "a red home on the beach, rainbow", ["rainbow"]),
        # Stop words of x part no modifier, content words of x do.
        ("a house on the hill", "a house on the hill, trending on artstation", ["trending on artstation"]),
        ("a green boat", "a green boat, green tint", ["tint"]),
        ("old man, oil painting", "old man, elegant, oil painting", ["elegant"]),
        ("a street without people", "a street without people, without text", ["without text"]),
        ("a street", "a street, no text, no text, with fog", ["no text", "fog"]),
        # Nothing of x is left: every clause is new.
        ("a red boat", "artstation, 4k", ["artstation", "4k"]),
    ],
)
def test_added(x: str, y: str, expected: list[str]) -> None:
    assert added(x, y) == expected


def test_the_suffix_is_an_unordered_set() -> None:
    x = "a cat"
    assert modifiers(x, "a cat, 4k, rainbow") == modifiers(x, "a cat, rainbow, 4k") == frozenset({"4k", "rainbow"})
