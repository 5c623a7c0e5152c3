"""Whether evaluation prompts occur in training files: a model that has seen a prompt is not evaluated on it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from promptist.data.prompts import parse_record, read_lines
from promptist.errors import UserError

FIELDS = ("prompt", "source", "target")


def normalise(text: str) -> str:
    """What of a prompt counts when two are compared: NFKC, without case, single spaces, no punctuation at its end."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.rstrip(" .,;:!?") or words


def texts_of_file(path: str | Path) -> Iterator[tuple[str, str]]:
    """`(file:line, text)` of every text of a training file: the lines of a text file, the fields `prompt`, `source` and
    `target` of a JSONL file.

    UserError for a JSONL line with none of them, and as `read_lines`.
    """
    path = Path(path)
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if path.suffix != ".jsonl":
            yield where, line
            continue
        record = parse_record(line, where)
        texts = [record[name] for name in FIELDS if isinstance(record.get(name), str)]
        if not texts:
            raise UserError(f"{where} has none of the texts {', '.join(FIELDS)}: name files of prompts or pairs")
        for text in texts:
            yield where, text


def check_disjoint(prompts: Sequence[str], files: Sequence[str | Path]) -> dict[str, int]:
    """Number of texts of each file, none of which is one of `prompts` (both as `normalise` sees them).

    UserError that names a prompt, and file and line where it occurs, and counts such prompts of that file.
    """
    wanted = {normalise(prompt): prompt for prompt in prompts}
    counts: dict[str, int] = {}
    for file in files:
        met: Counter[str] = Counter()
        first = ""
        count = 0
        for where, text in texts_of_file(file):
            count += 1
            same = normalise(text)
            if same in wanted:
                first = first or f"{where} has {wanted[same]!r}"
                met[same] += 1
        if met:
            others = f", and {len(met) - 1} more of the evaluation's prompts are in that file" if len(met) > 1 else ""
            raise UserError(f"{first}, which is an evaluation prompt{others}: remove them from one of the two")
        counts[str(file)] = count
    return counts
