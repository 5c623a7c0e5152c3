"""Words of a prompt, as text metrics compare them.

Prompts are compared by clause (what stands between commas, semicolons, bars, line and sentence ends) and by word,
without case and without the marks of the user interfaces: weights `(red:1.2)`, `red::2`, `<lora:name:0.8>`, and
parameters `--ar 16:9`. A *content word* is one that is not a stop word. Words that differ in a regular plural or a
possessive `'s` are the same (`stem`); irregular plurals (man, men) are different words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

NEGATIONS = frozenset((
    "no", "not", "without", "never", "neither", "nor", "cannot", "cant", "dont", "doesnt", "isnt",
))  # fmt: skip
"""Words that negate what follows them, beside those that end with n't."""

UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 1_000_000}
NUMBER_WORDS = {
    **{word: value for value, word in enumerate(UNITS)},
    **{word: 10 * value for value, word in enumerate(TENS, start=2)},
}

# scikit-learn's list was made for newspaper text; these of its words say what is in a picture.
_NO_STOP_WORDS = (
    "amount", "back", "bill", "bottom", "call", "cry", "describe", "detail", "empty", "fill", "fire", "first",
    "front", "full", "interest", "last", "mill", "mine", "move", "nobody", "none", "nothing", "nowhere", "serious",
    "side", "sincere", "system", "thick", "thin", "third", "top",
)  # fmt: skip

_MARKS = re.compile(
    r"<\w+:[^<>]*>"  # <lora:name:0.8>
    r"|::\s*-?(?:\d*\.)?\d+"  # red::2
    r"|:\s*(?:\d*\.)?\d+(?=\s*[)\]])"  # (red:1.2)
    r"|(?<!\S)--[a-z]+(?:\s+[\d.:]+(?!\S))?"  # --ar 16:9
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CLAUSE_END = re.compile(r"[,;|\n]|[.!?](?=\s|$)")
_WORD = re.compile(r"\d+(?:\.\d+)?(?![^\W_])|[^\W_]+(?:'[^\W_]+)*")


def clauses(text: str) -> list[str]:
    """The clauses of a prompt, in order: NFKC, lower case, without marks, single spaces; none is empty."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = _THOUSANDS.sub("", _MARKS.sub("", text))
    parts = (" ".join(part.split()) for part in _CLAUSE_END.split(text))
    return [part for part in parts if _WORD.search(part)]


def words(clause: str) -> list[str]:
    """The words and numbers of a clause of `clauses`, in order; hyphens part words."""
    return _WORD.findall(clause.replace("no one", "nobody"))


@lru_cache(maxsize=2**16)
def stem(word: str) -> str:
    """The form in which a word is compared: without `'s` and a regular plural ending.

    The letters that are left are no dictionary form (`house` and `houses` become `hous`, `zombies` becomes `zomby`).
    """
    word = word.removesuffix("'s")
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if len(word) > 3:
        if word.endswith("ie"):
            return word[:-2] + "y"
        if word.endswith(("se", "xe", "ze", "oe", "che", "she")):
            return word[:-1]
    return word


def negates(word: str) -> bool:
    return word in NEGATIONS or word.endswith("n't")


def is_stop_word(word: str) -> bool:
    """Whether a word says nothing by itself. Numbers and negations are no stop words."""
    return word in _stop_words()


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    kept = {*_NO_STOP_WORDS, *NEGATIONS, *NUMBER_WORDS, *SCALES}
    return frozenset(ENGLISH_STOP_WORDS) - kept
