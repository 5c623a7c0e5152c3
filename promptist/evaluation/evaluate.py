"""Rewrite, paint and measure every (method, prompt) of an evaluation; the table that statistics and report
read.

Prompts are dealt to the ranks in turn; each rank rewrites and paints its own, and rank 0 gathers the table.
Noise depends on (x, k) alone, batches are padded to one fixed shape, rewrites do not depend on their batch:
the number of ranks and the number of attempts change no number of the table.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from promptist.cluster.metrics import progress_line
from promptist.cluster.roles import World
from promptist.errors import UserError
from promptist.evaluation.methods import MethodConfig, applies, model_fingerprint, model_folder
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.statistics import Row
from promptist.evaluation.store import ImageKey, Store
from promptist.reward.messages import ImageRequest, Measurement

log = logging.getLogger(__name__)

NAMESPACE = "eval"
REWRITE_CHUNK = 32
TABLE = "measurements.parquet"

T = TypeVar("T")
Painter = Callable[[list[ImageRequest]], list[Measurement]]
Rewriter = Callable[[Path, list[str]], list[str]]


@dataclass(frozen=True)
class Plan:
    """What is compared. `images` per prompt are painted, of which the first `pictures` are kept as files."""

    prompts: list[EvalPrompt]
    methods: list[MethodConfig]
    images: int
    pictures: int
    batch: int


def evaluate(
    plan: Plan, folder: Path, world: World, rewrite: Rewriter, load_painter: Callable[[], tuple[Painter, str]]
) -> list[Row] | None:
    """Do what is missing of `plan` in `folder`; the whole table on rank 0 (written as parquet too), None
    elsewhere.

    `rewrite(model_folder, prompts)` gives one rewrite per prompt; `load_painter()` gives the measuring
    function and the fingerprint of everything its numbers depend on. It is called after the rewrites, so that
    the policies and the diffusion model need not fit into memory together.
    """
    store = Store(folder / "finished", world.rank)
    world.barrier_all()
    mine = plan.prompts[world.rank :: world.size]

    texts = {method.name: _rewrites(method, mine, store, rewrite) for method in plan.methods}
    paint, painter = load_painter()
    _paint_missing(plan, mine, texts, store, paint, painter, folder)

    rows = list(_rows(plan, mine, texts, store, painter))
    parts = _gather(world, json.dumps([asdict(row) for row in rows]))
    if parts is None:
        return None
    table = _sorted(plan, [Row(**row) for part in parts for row in json.loads(part)])
    write_table(folder / TABLE, table)
    return table


def _rewrites(
    method: MethodConfig, mine: Sequence[EvalPrompt], store: Store, rewrite: Rewriter
) -> dict[str, str]:
    """x -> y for every prompt that has this method; y is empty where the model left the prompt alone."""
    if method.kind == "user":
        return {p.x: p.x for p in mine}
    if method.kind == "human":
        return {p.x: p.human for p in mine if p.human is not None}
    assert method.path is not None  # check_methods
    folder = model_folder(method.path)
    model = model_fingerprint(folder)
    missing = [p.x for p in mine if (model, p.x) not in store.rewrites]
    progress = Progress(f"rewriting by {method.name}", "prompts", len(missing))
    for chunk in _chunks(missing, REWRITE_CHUNK):
        found = rewrite(folder, chunk)
        store.add_rewrites(model, {x: y.strip() for x, y in zip(chunk, found, strict=True)})
        progress.advance(len(chunk))
    return {p.x: store.rewrites[model, p.x] for p in mine}


def _paint_missing(
    plan: Plan, mine: Sequence[EvalPrompt], texts: dict[str, dict[str, str]], store: Store,
    paint: Painter, painter: str, folder: Path,
) -> None:  # fmt: skip
    wanted: dict[ImageKey, ImageRequest] = {}
    for prompt in mine:
        for y in dict.fromkeys(
            texts[m.name][prompt.x] or prompt.x for m in plan.methods if applies(m, prompt)
        ):
            for k in range(plan.images):
                key = (painter, y, prompt.x, k)
                keep = k < plan.pictures
                if not _finished(store, key, keep, folder):
                    wanted[key] = ImageRequest(y, prompt.x, NAMESPACE, k, keep_picture=keep)
    progress = Progress("painting", "images", len(wanted))
    # One diffusion batch at a time: what a killed attempt loses is at most that.
    for chunk in _chunks(list(wanted), plan.batch):
        measured = paint([wanted[key] for key in chunk])
        store.add_images(dict(zip(chunk, measured, strict=True)))
        progress.advance(len(chunk))


def _finished(store: Store, key: ImageKey, keep: bool, folder: Path) -> bool:
    done = store.images.get(key)
    return done is not None and (not keep or (done.picture is not None and (folder / done.picture).is_file()))


def _rows(
    plan: Plan, mine: Sequence[EvalPrompt], texts: dict[str, dict[str, str]], store: Store, painter: str
) -> Iterator[Row]:
    for prompt in mine:
        for method in plan.methods:
            if not applies(method, prompt):
                continue
            y = texts[method.name][prompt.x]
            for k in range(plan.images):
                done = store.images[painter, y or prompt.x, prompt.x, k]
                picture = done.picture if k < plan.pictures else None
                yield Row(prompt.x, prompt.set, method.name, k, y, done.cosine, done.aesthetic, picture)


def _sorted(plan: Plan, rows: list[Row]) -> list[Row]:
    """By prompt in file order, then method in config order, then k: the same bytes whatever the number of
    ranks.
    """
    place = {p.x: i for i, p in enumerate(plan.prompts)}
    column = {m.name: i for i, m in enumerate(plan.methods)}
    return sorted(rows, key=lambda r: (place[r.prompt], column[r.method], r.k))


def _gather(world: World, part: str) -> list[str] | None:
    if world.comm is None:
        return [part]
    # The ranks end at different times, and a gather that waits would burn the cores of the others.
    world.barrier_all()
    gathered: list[str] | None = world.comm.gather(part, root=0)
    return gathered


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Parquet, one row per image with the fields of `Row`; appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    schema = pa.schema(
        {
            "prompt": text, "set": text, "method": text, "k": pa.int32(), "rewrite": text,
            "cosine": number, "aesthetic": number, "picture": text,
        }
    )  # fmt: skip
    part = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), part)
    os.replace(part, path)


def read_table(path: Path) -> list[Row]:
    """Inverse of `write_table`; UserError where the file is missing or no such table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no finished evaluation ({path.name} is missing): run jobs.evaluate first"
        )
    try:
        return [Row(**row) for row in pq.read_table(path).to_pylist()]
    except (pa.ArrowException, TypeError) as error:
        raise UserError(
            f"{path} is not a table of this evaluation ({error}): delete it and evaluate again"
        ) from None


class Progress:
    """A log line every few seconds, with the rate and the time left."""

    def __init__(self, what: str, unit: str, total: int, every_s: float = 5.0) -> None:
        self.what, self.unit, self.total, self.every_s = what, unit, total, every_s
        self.done = 0
        self.start = self.last = time.monotonic()
        log.info("eval | %s: %s", what, f"{total} {unit} to do" if total else "nothing to do")

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < self.every_s and self.done < self.total:
            return
        self.last = now
        seconds = (now - self.start) / self.done
        rate = {f"{self.unit}/s": 1 / max(seconds, 1e-9)}
        log.info("%s", progress_line(f"eval | {self.what}", self.done, self.total, rate, seconds))


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
