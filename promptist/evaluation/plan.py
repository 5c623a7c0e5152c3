"""What an evaluation compares: the prompts, and a row of the comparison for each method and replica of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from promptist.evaluation.lengths import Ruler
from promptist.evaluation.prompts import EvalPrompt


@dataclass(frozen=True)
class Entry:
    """One row: a method, by one training of it (`replica`; 0 for methods that nobody trained).

    `model` is the fingerprint of the model that rewrites, empty for methods without one; `reference` that of the model
    against which its log-ratio is taken, empty for none. The folders are known where work is done, not to the reducer.
    """

    method: str
    replica: int = 0
    kind: str = "user"
    model: str = ""
    reference: str = ""
    folder: Path | None = None
    reference_folder: Path | None = None


@dataclass(frozen=True)
class Plan:
    """`texts`: what the methods without a model make of each prompt, method -> x -> y; a prompt that is missing there
    does not have the method. `images` per prompt are painted, of which the first `pictures` are kept as files; `batch`:
    pictures painted at a time; `rulers`: how lengths of texts are measured."""

    prompts: list[EvalPrompt]
    entries: list[Entry]
    texts: Mapping[str, Mapping[str, str]]
    images: int
    pictures: int
    batch: int
    rulers: tuple[Ruler, ...] = ()

    def applies(self, entry: Entry, x: str) -> bool:
        """Whether the prompt x has this row (human-engineered prompts exist for some prompts only)."""
        return bool(entry.model) or x in self.texts[entry.method]

    def keeps(self, painted: str, x: str, k: int) -> bool:
        """Whether the picture is kept as a file; of plain prompts all are where one of them may be chosen."""
        return k < self.pictures or (painted == x and any(entry.kind == "best_of" for entry in self.entries))
