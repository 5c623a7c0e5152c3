"""Append-only record of finished evaluation work, addressed by content.

One JSONL file per rank, any number of ranks per attempt. A rewrite is stored under (model fingerprint, x), an
image under (painter fingerprint, what was painted, x, k). So whatever changed between two attempts (a
retrained model, more images, other prompts, another number of ranks), exactly the work that is missing is
done, and nothing stale is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from promptist.reward.messages import Measurement

ImageKey = tuple[str, str, str, int]
RewriteKey = tuple[str, str]


class Store:
    """All that earlier attempts finished, and this rank's file to add to.

    Ranks of one attempt own different prompts, so none needs what another adds; opening must be over on every
    rank before the first one writes (a barrier), so that all start from the same record.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.images: dict[ImageKey, Measurement] = {}
        self.rewrites: dict[RewriteKey, str] = {}
        for path in sorted(folder.glob("rank_*.jsonl")):
            for line in _complete_lines(path):
                self._remember(json.loads(line))
        self._path = folder / f"rank_{rank:05d}.jsonl"
        _cut_broken_tail(self._path)

    def add_rewrites(self, model: str, rewrites: dict[str, str]) -> None:
        """`rewrites` maps x to y, both stripped, for the model with that fingerprint."""
        self._append([{"model": model, "x": x, "y": y} for x, y in rewrites.items()])

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
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        with self._path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        for entry in entries:
            self._remember(entry)

    def _remember(self, entry: dict[str, Any]) -> None:
        if "model" in entry:
            self.rewrites[entry["model"], entry["x"]] = entry["y"]
        else:
            key = (entry["painter"], entry["painted"], entry["source"], entry["k"])
            self.images[key] = Measurement(
                entry["cosine"], entry["aesthetic"], entry["extra"], entry["picture"]
            )


def _complete_lines(path: Path) -> list[bytes]:
    """Lines that end in a newline: a killed attempt may leave half a line at the end, which never counts as
    done.
    """
    return path.read_bytes().split(b"\n")[:-1]


def _cut_broken_tail(path: Path) -> None:
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
