"""What a rewrite keeps of its prompt, read off the texts alone: content words, numbers, negations, and colours or
objects that were exchanged for others of their class.

Cheap and blind to meaning: a synonym counts as lost unless the lexicon knows it, and a word that is kept says nothing
about the picture. Relevance is measured on pictures; this finds what was dropped, and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from promptist.data.words import NUMBER_WORDS, SCALES, TENS, clauses, is_stop_word, negates, stem, words
from promptist.errors import UserError

COLOURS = "colours"
# Names of CSS colours that are names of things first: "snow" in a prompt is weather.
_THINGS = frozenset((
    "bisque", "burlywood", "chocolate", "coral", "cornsilk", "firebrick", "gainsboro", "honeydew", "lavender",
    "lime", "linen", "moccasin", "olive", "orchid", "peru", "plum", "salmon", "seashell", "sienna", "snow",
    "thistle", "tomato", "wheat",
))  # fmt: skip

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """Classes of words of which one replaces another: `classes[name]` is a list of entries, an entry the words and
    phrases that mean the same.

    A word of several entries or classes belongs to all of them.
    """

    classes: dict[str, list[list[str]]]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Lexicon:
        """The colours of CSS4 that are a word of their own, and the classes of the YAML (or JSON) file `path`:

            objects:
              - [house, home]   # mean the same
              - boat
            colours: [...]      # replaces the colours of CSS4

        UserError naming file and class for anything else in it.
        """
        classes = {COLOURS: css_colours()}
        if path is not None:
            classes |= _read(Path(path))
        return cls(classes)

    @cached_property
    def _entries(self) -> dict[Phrase, list[tuple[str, int]]]:
        """Stems of a phrase -> (class, number of the entry) of the entries that hold it."""
        found: dict[Phrase, list[tuple[str, int]]] = {}
        for name, entries in self.classes.items():
            for number, entry in enumerate(entries):
                for phrase in entry:
                    found.setdefault(tuple(_stems(phrase)), []).append((name, number))
        return found

    def find(self, stems: Sequence[str]) -> dict[tuple[str, int], set[str]]:
        """(class, number of the entry) -> the stems by which a text names it."""
        longest = max(map(len, self._entries), default=0)
        named: dict[tuple[str, int], set[str]] = {}
        for start in range(len(stems)):
            for end in range(start + 1, min(start + longest, len(stems)) + 1):
                phrase = tuple(stems[start:end])
                for entry in self._entries.get(phrase, ()):
                    named.setdefault(entry, set()).update(phrase)
        return named


def text_metrics(x: str, y: str, lexicon: Lexicon) -> dict[str, float]:
    """Figures of one rewrite y of the prompt x; an empty y leaves x as it is, and keeps everything.

    - `words_kept`: share of x's different content words that stand in y, too; regular plurals and the synonyms of the
      lexicon count as the same word. Numbers and negations are counted by themselves.
    - `swapped`: number of entries of the lexicon that x names and y does not, while y names another of the same class
      that x does not name ("a red boat" -> "a blue boat": 1).
    - `numbers_kept`: share of x's different numbers that stand in y, as digits or words ("3 cats" -> "three cats").
      "one" is kept by "a", "an" and "single" as well. Numbers with a unit ("4k") are words.
    - `negations_kept`: share of x's negated things ("without people", "no text") that y negates, too.
    - `empty`: 1 where y is empty, else 0.

    A share is 1 where x has nothing of the kind.
    """
    if not y.strip():
        return {"words_kept": 1.0, "swapped": 0.0, "numbers_kept": 1.0, "negations_kept": 1.0, "empty": 1.0}
    stems_x, stems_y = _stems(x), _stems(y)
    named_x, named_y = lexicon.find(stems_x), lexicon.find(stems_y)
    kept = set(stems_y).union(*(stems for entry, stems in named_x.items() if entry in named_y))
    return {
        "words_kept": _share(_content(x), kept),
        "swapped": float(_swapped(set(named_x), set(named_y))),
        "numbers_kept": _numbers_kept(x, y),
        "negations_kept": _negations_kept(x, y),
        "empty": 0.0,
    }


def css_colours() -> list[list[str]]:
    """The colours of CSS4 as entries; two names of one colour (gray and grey, aqua and cyan) mean the same.

    Without names that are two words in a prompt ("darkred": the word "red" counts), and those of things.
    """
    from matplotlib.colors import CSS4_COLORS

    names = set(CSS4_COLORS)
    joined = {name for name in names for end in names if name != end and name.endswith(end)}
    by_value: dict[str, list[str]] = {}
    for name in sorted(names - joined - _THINGS):
        by_value.setdefault(CSS4_COLORS[name], []).append(name)
    return list(by_value.values())


def _swapped(x: set[tuple[str, int]], y: set[tuple[str, int]]) -> int:
    new_in = {name for name, _ in y - x}
    return sum(name in new_in for name, _ in x - y)


def _numbers_kept(x: str, y: str) -> float:
    kept = set(_numbers(x)), set(_numbers(y))
    if {"a", "an", "single"} & {word for clause in clauses(y) for word in words(clause)}:
        kept[1].add(1.0)
    return _share(*kept)


def _numbers(text: str) -> Iterator[float]:
    """The numbers of a text: digits, and words up to "two hundred", "twenty one", "2 million"."""
    for clause in clauses(text):
        value: float | None = None
        last = ""
        for word in words(clause):
            digits = word[0].isdecimal() and word.replace(".", "", 1).isdecimal()
            plain = float(word) if digits else NUMBER_WORDS.get(word)
            if word in SCALES:
                value = (1.0 if value is None else value) * SCALES[word]
            elif value is not None and plain is not None and last in TENS and 0 < plain < 10 and not digits:
                value += plain
            else:
                if value is not None:
                    yield value
                value = plain
            last = word
        if value is not None:
            yield value


def _negations_kept(x: str, y: str) -> float:
    wanted = [thing for thing, _ in _negated(x)]
    if not wanted:
        return 1.0
    scopes = [scope for _, scope in _negated(y)]
    return sum(any(thing <= scope for scope in scopes) for thing in wanted) / len(wanted)


def _negated(text: str) -> Iterator[tuple[set[str], set[str]]]:
    """For every negation of a text: the thing it negates (the first run of content words after it) and its scope (all
    content words after it in its clause). "no text or people" negates two things."""
    for clause in clauses(text):
        row = words(clause)
        starts = [i + 1 for i, word in enumerate(row) if negates(word)]
        for start in starts:
            starts += [i + 1 for i in _next_things(row, start)]
        for start in sorted(set(starts)):
            thing: set[str] = set()
            for word in row[start:]:
                if not is_stop_word(word) and not negates(word):
                    thing.add(stem(word))
                elif thing or negates(word):
                    break
            if thing:
                yield thing, {stem(word) for word in row[start:] if not is_stop_word(word)}


def _next_things(row: Sequence[str], start: int) -> list[int]:
    """Place of the "or" that goes on with the negation whose thing begins at `start`, if one follows the thing."""
    seen = False
    for i in range(start, len(row)):
        if not is_stop_word(row[i]) and not negates(row[i]):
            seen = True
        elif seen or negates(row[i]):
            return [i] if row[i] == "or" else []
    return []


def _content(text: str) -> set[str]:
    return {stem(word) for clause in clauses(text) for word in words(clause) if _is_content(word)}


def _is_content(word: str) -> bool:
    number = word in NUMBER_WORDS or word in SCALES or word.replace(".", "", 1).isdecimal()
    return not (number or negates(word) or is_stop_word(word))


def _stems(text: str) -> list[str]:
    return [stem(word) for clause in clauses(text) for word in words(clause)]


def _share(wanted: set, kept: set) -> float:
    return len(wanted & kept) / len(wanted) if wanted else 1.0


def _read(path: Path) -> dict[str, list[list[str]]]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"the lexicon {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the lexicon {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"the lexicon {path} must map names of classes to lists, like `objects: [[house, home], boat]`")
    classes = {}
    for name, entries in content.items():
        listed = entries if isinstance(entries, list) else []
        classes[str(name)] = [entry if isinstance(entry, list) else [entry] for entry in listed]
        phrases = [phrase for entry in classes[str(name)] for phrase in entry]
        if not phrases or not all(isinstance(phrase, str) and _stems(phrase) for phrase in phrases):
            raise UserError(
                f"the lexicon {path}: `{name}` must be a list of words, or of lists of words that mean the same (put "
                "words that YAML reads as something else, such as no and on, in quotes)"
            )
    return classes
