"""What a rewrite adds to its prompt, as a set of modifiers: the one notion of *suffix* of training and evaluation.

`diversity` figures, the share of the most frequent suffix, random and fixed suffixes as rows of a comparison and the
diversity-aware reward all mean the same by it.
"""

from __future__ import annotations

from promptist.data.words import clauses, is_stop_word, negates, stem, words


def modifiers(x: str, y: str) -> frozenset[str]:
    """The suffix of the rewrite y of x as an unordered set of modifiers; empty where y adds nothing (and for y "")."""
    return frozenset(added(x, y))


def added(x: str, y: str) -> list[str]:
    """The modifiers that y adds to x, in the order of y, each once, in lower case.

    A modifier is a clause of y without the content words of x, and without stop words at its ends; a clause of which
    nothing is left adds nothing. The clause that shares most content words with x (the first of several) is x's own
    content. Where y lacks a content word of x, that clause may say it in other words ("home" for "house"), and adds
    nothing; else its further words are added, as in "a red boat in dramatic light".
    """
    known: set[str] = set().union(*(_content(words(part)) for part in clauses(x)))
    parts = [words(part) for part in clauses(y)]
    contents = [_content(part) for part in parts]
    shared = [len(content & known) for content in contents]
    own = shared.index(max(shared)) if any(shared) else None
    reworded = not known.issubset(set().union(*contents))
    found: dict[str, None] = {}
    for i, part in enumerate(parts):
        if i == own and reworded:
            continue
        left = [word for word in part if _says_nothing(word) or stem(word) not in known]
        while left and is_stop_word(left[0]):
            left.pop(0)
        while left and is_stop_word(left[-1]):
            left.pop()
        if not all(_says_nothing(word) for word in left):
            found[" ".join(left)] = None
    return list(found)


def _content(row: list[str]) -> set[str]:
    return {stem(word) for word in row if not _says_nothing(word)}


def _says_nothing(word: str) -> bool:
    return is_stop_word(word) or negates(word)
