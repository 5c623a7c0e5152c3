"""Pair files for supervised fine-tuning: JSONL `{"source", "target", "kind", "group"}`.

`kind` is how the source was made from the human-engineered target (paper section 2.2: MC, MCM, RMC, RTP);
pairs of one `group` share their target, so that training and validation are split by group, never by pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from promptist.data.prompts import parse_record, read_lines, text_field
from promptist.errors import UserError


@dataclass
class PairDataConfig:
    """Training and validation pairs; `max_length` bounds the tokens of one pair (paper: 512)."""

    train: str = ""
    valid: str = ""
    max_length: int = 512

    def __post_init__(self) -> None:
        if isinstance(self.max_length, int) and self.max_length < 2:
            raise UserError(f"data.max_length must be at least 2, not {self.max_length}")


@dataclass(frozen=True)
class Pair:
    """The user's words `source`, the human-engineered prompt `target`."""

    source: str
    target: str
    kind: str
    group: str


def read_pairs(path: str | Path) -> list[Pair]:
    """All pairs of a JSONL file, in its order. Raises UserError naming file and line."""
    path = Path(path)
    pairs = []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        record = parse_record(line, where)
        if record.get("group") is None:
            raise UserError(f"{where} has no `group`")
        pairs.append(
            Pair(
                text_field(record, "source", where),
                text_field(record, "target", where),
                text_field(record, "kind", where),
                str(record["group"]),
            )
        )
    if not pairs:
        raise UserError(f"{path} holds no pair: it is empty")
    return pairs
