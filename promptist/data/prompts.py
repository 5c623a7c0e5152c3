"""Prompt files: UTF-8 text with one prompt a line, or JSONL with `prompt` and optional `sort`, `id`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptist.data.text import prompt_ids
from promptist.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class PromptSource:
    """One file of prompts and its share of the draws (weights need not add up to 1)."""

    path: str
    sort: str = "user"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not 0 < self.weight < float("inf"):
            raise UserError(
                f"data.prompts: the weight of {self.path} must be a positive number, not {self.weight}"
            )


@dataclass
class PromptDataConfig:
    """Prompts to train on, by source, and the fixed ones to validate on."""

    prompts: list[PromptSource] = field(default_factory=list)
    valid: str = ""
    max_prompt_tokens: int = 128  # ours: the paper's code does not cut or drop long prompts

    def __post_init__(self) -> None:
        if isinstance(self.max_prompt_tokens, int) and self.max_prompt_tokens < 1:
            raise UserError(f"data.max_prompt_tokens must be at least 1, not {self.max_prompt_tokens}")


@dataclass(frozen=True)
class Prompt:
    """A user's prompt x. `sort` says where it comes from, `id` names it in reports."""

    text: str
    sort: str
    id: str


def read_prompts(path: str | Path, sort: str = "user") -> list[Prompt]:
    """All prompts of a file, in its order, stripped; `sort` is for lines that name none themselves.

    Raises UserError naming file and line for a missing, empty or non-UTF-8 file, a blank line, or a broken
    record.
    """
    path = Path(path)
    read = _from_json if path.suffix == ".jsonl" else _from_text
    prompts = [
        read(line, f"{path}:{number}", sort, f"{path.stem}:{number}") for number, line in read_lines(path)
    ]
    if not prompts:
        raise UserError(f"{path} holds no prompt: it is empty")
    return prompts


def read_sources(sources: Sequence[PromptSource]) -> list[list[Prompt]]:
    """The prompts of each source. Raises UserError where no source is given."""
    if not sources:
        raise UserError("data.prompts is empty: name at least one file of prompts")
    return [read_prompts(source.path, source.sort) for source in sources]


def drop_long(
    prompts: Sequence[Prompt], tokenizer: Any, max_tokens: int, name: str = "prompts"
) -> list[Prompt]:
    """Those of at most `max_tokens` tokens (with the separator); the others are counted in the log, never
    cut.

    Raises UserError if none is left.
    """
    kept = [p for p in prompts if len(prompt_ids(tokenizer, p.text)) <= max_tokens]
    if not kept:
        raise UserError(
            f"all {len(prompts)} {name} are longer than data.max_prompt_tokens={max_tokens} tokens: raise it"
        )
    if len(kept) < len(prompts):
        log.warning(
            "%d of %d %s left out: longer than %d tokens",
            len(prompts) - len(kept),
            len(prompts),
            name,
            max_tokens,
        )
    return kept


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """`(line number from 1, line without its end)` of a UTF-8 file.

    Only a newline ends a line: prompts from the web hold other Unicode line separators. Raises UserError on a
    missing or unreadable file and on a blank line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"the file {path} does not exist") from None
    except OSError as error:
        raise UserError(f"the file {path} cannot be read: {error.strerror}") from error
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number} is not UTF-8 text: convert the file") from error
        if not line.strip():
            raise UserError(f"{path}:{number} is blank: remove the line")
        yield number, line


def parse_record(line: str, where: str) -> dict[str, Any]:
    """The JSON object of one JSONL line. Raises UserError naming the line `where`."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} must be a JSON object, not {type(record).__name__}")
    return record


def text_field(record: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """A non-blank text of the record, stripped; `default` where the key is absent."""
    value = record.get(name, default)
    if value is None:
        raise UserError(f"{where} has no `{name}`")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: `{name}` must be non-empty text, not {value!r}")
    return value.strip()


def _from_text(line: str, where: str, sort: str, name: str) -> Prompt:
    return Prompt(line.strip(), sort, name)


def _from_json(line: str, where: str, sort: str, name: str) -> Prompt:
    record = parse_record(line, where)
    return Prompt(
        text_field(record, "prompt", where),
        text_field(record, "sort", where, sort),
        str(record.get("id", name)),
    )
