"""The measurement table of an evaluation: what the jobs write, and statistics, report and rating page read.

    measurements.parquet   a row per (prompt, method, replica, seed, metric): the value, and the model's fingerprint
    texts.parquet          a row per (prompt, method, replica): what was painted
    pictures.parquet       a row per kept picture

A *replica* is one training of a method (its training seed); methods that nobody trained have replica 0 only. A *seed*
is the noise key k of a picture; metrics of a text have none. The files' own metadata (`META_KEY`) holds the hashes of
prompts, config and painter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from promptist.errors import UserError

MEASUREMENTS, TEXTS, PICTURES = "measurements.parquet", "texts.parquet", "pictures.parquet"
META_KEY = b"promptist"
VERSION = 2  # 1 had a row per picture

T = TypeVar("T", "Measure", "Text", "Picture")


@dataclass(frozen=True, slots=True)
class Measure:
    """One number. `seed` is None for a metric of the text; `model` is the fingerprint of the model that rewrote, empty
    for methods without one."""

    prompt: str
    set: str
    method: str
    replica: int
    seed: int | None
    metric: str
    value: float
    model: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """What a method made of a prompt; `rewrite` is empty where it left the prompt alone, and x itself was painted."""

    prompt: str
    set: str
    method: str
    replica: int
    rewrite: str

    @property
    def painted(self) -> str:
        return self.rewrite or self.prompt


@dataclass(frozen=True, slots=True)
class Picture:
    """A kept picture; `path` is relative to the evaluation folder."""

    prompt: str
    method: str
    replica: int
    seed: int
    path: str


@dataclass(frozen=True)
class Scores:
    """One metric of one method: `values [P, R]`, the mean over the seeds of prompt p by replica r."""

    prompts: list[str]
    values: NDArray[np.float64]

    def of(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """The rows of `prompts`, in that order; KeyError for a prompt that the method does not have."""
        place = {prompt: i for i, prompt in enumerate(self.prompts)}
        return self.values[[place[prompt] for prompt in prompts]]


@dataclass(frozen=True)
class Table:
    """A finished evaluation. Prompts, sets and methods keep the order in which they first appear."""

    measures: list[Measure]
    texts: list[Text]
    pictures: list[Picture] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def set_of(self) -> dict[str, str]:
        """prompt -> set, in order."""
        return {text.prompt: text.set for text in self.texts}

    @cached_property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(self.set_of.values()))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(text.method for text in self.texts))

    @cached_property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(m.metric for m in self.measures))

    def replicas(self, method: str) -> list[int]:
        return list(self._replicas.get(method, ()))

    @cached_property
    def _replicas(self) -> dict[str, list[int]]:
        found: dict[str, set[int]] = {}
        for text in self.texts:
            found.setdefault(text.method, set()).add(text.replica)
        return {method: sorted(replicas) for method, replicas in found.items()}

    def scores(self, metric: str, method: str, set_name: str | None = None) -> Scores:
        """A metric of a method on a set (None: on all), on the prompts that have it.

        ValueError where a prompt lacks a replica or a seed that others have: means would not be comparable.
        """
        cells = self._cells.get((metric, method), {})
        prompts = [p for p in self.set_of if p in cells and set_name in (None, self.set_of[p])]
        replicas = self.replicas(method)
        found = [[cells[p].get(r, {}) for r in replicas] for p in prompts]
        seeds = {tuple(sorted(by_seed)) for row in found for by_seed in row}
        if len(seeds) > 1:
            raise ValueError(f"{metric} of {method} was not measured with the same seeds for all prompts: {seeds}")
        values = [[float(np.mean([by_seed[k] for k in sorted(by_seed)])) for by_seed in row] for row in found]
        return Scores(prompts, np.array(values, np.float64).reshape(len(prompts), len(replicas)))

    def value(self, metric: str, method: str, prompt: str, replica: int = 0, seed: int | None = None) -> float:
        """One number; KeyError where it was not measured."""
        return self._cells[metric, method][prompt][replica][-1 if seed is None else seed]

    @cached_property
    def _cells(self) -> dict[tuple[str, str], dict[str, dict[int, dict[int, float]]]]:
        """(metric, method) -> prompt -> replica -> seed (-1: none) -> value. ValueError for a number that stands twice
        or is not finite."""
        cells: dict[tuple[str, str], dict[str, dict[int, dict[int, float]]]] = {}
        for m in self.measures:
            by_seed = cells.setdefault((m.metric, m.method), {}).setdefault(m.prompt, {}).setdefault(m.replica, {})
            seed = -1 if m.seed is None else m.seed
            if seed in by_seed:
                raise ValueError(f"{m.metric} of {m.method} for {m.prompt!r}, seed {m.seed}, stands twice")
            if not np.isfinite(m.value):
                raise ValueError(f"{m.metric} of {m.method} for {m.prompt!r} is {m.value}")
            by_seed[seed] = m.value
        return cells


def write_table(folder: Path, table: Table) -> None:
    """The three files; each appears whole or not at all, `measurements.parquet` last."""
    _write(folder / PICTURES, Picture, table.pictures, table.meta)
    _write(folder / TEXTS, Text, table.texts, table.meta)
    _write(folder / MEASUREMENTS, Measure, table.measures, table.meta)


def read_table(folder: Path) -> Table:
    """Inverse of `write_table`; UserError where a file is missing, damaged or of another version."""
    measures, meta = _read(folder / MEASUREMENTS, Measure)
    texts, _ = _read(folder / TEXTS, Text)
    pictures, _ = _read(folder / PICTURES, Picture)
    return Table(measures, texts, pictures, meta)


def _write(path: Path, kind: type[T], rows: Sequence[T], meta: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = {"str": pa.string(), "int": pa.int32(), "int | None": pa.int32(), "float": pa.float64()}
    schema = pa.schema({f.name: arrow[str(f.type)] for f in fields(kind)})
    schema = schema.with_metadata({META_KEY: json.dumps({**meta, "version": VERSION}, sort_keys=True).encode()})
    part = path.with_name(path.name + ".tmp")
    # By columns: a table of six sets has a million rows.
    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in schema.names]
    pq.write_table(pa.table(columns, schema=schema), part)
    os.replace(part, path)


def _read(path: Path, kind: type[T]) -> tuple[list[T], dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path.parent} holds no finished evaluation ({path.name} is missing): run jobs.evaluate first")
    try:
        table = pq.read_table(path)
        meta: dict[str, Any] = json.loads((table.schema.metadata or {}).get(META_KEY, b"{}"))
        if meta.pop("version", None) != VERSION:
            raise UserError(f"{path} was written by another version of the suite: evaluate again")
        columns = [table.column(f.name).to_pylist() for f in fields(kind)]
        return [kind(*row) for row in zip(*columns, strict=True)], meta
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a table of this evaluation ({error}): delete it and evaluate again") from None
