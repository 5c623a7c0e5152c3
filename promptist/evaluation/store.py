"""Append-only record of finished evaluation work, addressed by content.

One JSONL file per attempt and rank. A rewrite is stored under (model fingerprint, x), an image under (painter
fingerprint, what was painted, x, k), a log-ratio under (model fingerprint, reference fingerprint, x), a length under
(tokenizer fingerprint, text). So whatever changed between two attempts (a retrained model, more images, other prompts,
another number of ranks or shards), exactly the work that is missing is done, and nothing stale is read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from promptist.reward.messages import Measurement

log = logging.getLogger(__name__)

ImageKey = tuple[str, str, str, int]
RewriteKey = tuple[str, str]
RatioKey = tuple[str, str, str]
LengthKey = tuple[str, str]


class Store:
    """All that was finished when it was opened, and a file of its own to add to.

    Ranks of one attempt, and shards that run at the same time, own different prompts, so none needs what another
    adds. `writer` names the file; no two processes that run at the same time may share a name. `added` are the lines
    of this one.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.images: dict[ImageKey, Measurement] = {}
        self.rewrites: dict[RewriteKey, str] = {}
        self.ratios: dict[RatioKey, float] = {}
        self.lengths: dict[LengthKey, int] = {}
        self.added: list[str] = []
        for path in sorted(folder.glob("*.jsonl")):
            for line in _complete_lines(path):
                self._remember_line(line, path)
        self._path = folder / f"{writer}.jsonl"
        _cut_broken_tail(self._path)

    def merge(self, lines: Iterable[str]) -> None:
        """Take over what other ranks of this attempt have `added`."""
        for line in lines:
            self._remember(json.loads(line))

    def add_rewrites(self, model: str, rewrites: dict[str, str]) -> None:
        """`rewrites` maps x to y, both stripped, for the model with that fingerprint."""
        self._append([{"model": model, "x": x, "y": y} for x, y in rewrites.items()])

    def add_ratios(self, model: str, reference: str, ratios: dict[str, float]) -> None:
        """`ratios` maps x to log pi(y|x) - log pi_reference(y|x) of the rewrite y by the model, in nats."""
        self._append([{"model": model, "reference": reference, "x": x, "nats": v} for x, v in ratios.items()])

    def add_lengths(self, tokenizer: str, lengths: dict[str, int]) -> None:
        """`lengths` maps a text to its number of tokens."""
        self._append([{"tokenizer": tokenizer, "text": text, "tokens": n} for text, n in lengths.items()])

    def add_images(self, images: dict[ImageKey, Measurement]) -> None:
        self._append(
            [
                {
                    "painter": painter, "painted": painted, "source": source, "k": k,
                    "cosine": m.cosine, "aesthetic": m.aesthetic, "extra": m.extra, "picture": m.picture,
                }
                for (painter, painted, source, k), m in images.items()
            ]
        )  # fmt: skip

    def _append(self, entries: list[dict[str, Any]]) -> None:
        if not entries:
            return
        lines = [json.dumps(entry) for entry in entries]
        with self._path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.added += lines
        for entry in entries:
            self._remember(entry)

    def _remember_line(self, line: bytes, path: Path) -> None:
        try:
            self._remember(json.loads(line))
        except (ValueError, KeyError, TypeError):
            log.warning("%s holds a broken line: what it recorded is done again", path)

    def _remember(self, entry: dict[str, Any]) -> None:
        if "reference" in entry:
            self.ratios[entry["model"], entry["reference"], entry["x"]] = float(entry["nats"])
        elif "tokenizer" in entry:
            self.lengths[entry["tokenizer"], entry["text"]] = int(entry["tokens"])
        elif "model" in entry:
            self.rewrites[entry["model"], entry["x"]] = entry["y"]
        else:
            key = (entry["painter"], entry["painted"], entry["source"], entry["k"])
            self.images[key] = Measurement(entry["cosine"], entry["aesthetic"], entry["extra"], entry["picture"])


def _complete_lines(path: Path) -> list[bytes]:
    """Lines that end in a newline: a killed attempt may leave half a line at the end, which never counts as
    done.
    """
    return path.read_bytes().split(b"\n")[:-1]


def _cut_broken_tail(path: Path) -> None:
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
