"""Configs: precedence, strictness, and the sentences a user sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from promptist import config
from promptist.errors import UserError


@dataclass
class Source:
    path: str
    weight: float = 1.0


@dataclass
class Optimizer:
    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["constant", "linear"] = "constant"
    nesterov: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.lr, float) and self.lr <= 0:
            raise UserError(f"optimizer.lr must be positive, not {self.lr}")


@dataclass
class Run:
    name: str = "run"
    seed: int = 0


@dataclass
class Job:
    run: Run = field(default_factory=Run)
    optimizer: Optimizer = field(default_factory=Optimizer)
    value: Optimizer | None = None
    blocks: int | None = None
    sources: list[Source] = field(default_factory=list)
    models: dict[str, Source] = field(default_factory=dict)


@dataclass
class Strict:
    path: str
    run: Run = field(default_factory=Run)


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_precedence_defaults_base_file_overrides(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "base.yaml", "run: {name: base, seed: 1}\noptimizer: {lr: 1e-3}\n")
    write(tmp_path / "shared" / "mid.yaml", "base: base.yaml\nrun: {seed: 2}\n")
    path = write(tmp_path / "jobs" / "job.yaml", "base: ../shared/mid.yaml\nrun: {name: job}\n")
    job = config.load(Job, path, ["run.seed=3", "optimizer.betas=[0.8,0.9]"])
    assert job == Job(run=Run("job", 3), optimizer=Optimizer(lr=1e-3, betas=(0.8, 0.9)))
    assert isinstance(job.optimizer, Optimizer)


def test_empty_file_gives_defaults(tmp_path: Path) -> None:
    assert config.load(Job, write(tmp_path / "job.yaml", "")) == Job()


def test_nested_lists_optionals_and_interpolation(tmp_path: Path) -> None:
    text = """
        sources: [{path: a.txt}, {path: b.txt, weight: 2}]
        value: {lr: 1e-4}
        blocks: 2
        run: {name: 's${run.seed}'}
    """
    job = config.load(
        Job, write(tmp_path / "j.yaml", text), ["sources.1.weight=3", "run.seed=5", "blocks=null"]
    )
    assert job.sources == [Source("a.txt", 1.0), Source("b.txt", 3.0)]
    assert job.value == Optimizer(lr=1e-4)
    assert job.blocks is None
    assert job.run.name == "s5"
    on = config.load(Job, write(tmp_path / "off.yaml", "value: null"), ["value.lr=0.5"])
    assert on.value == Optimizer(lr=0.5)


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("run: {sed: 1}", [], r"unknown key `run\.sed` in .*job\.yaml: did you mean `run\.seed`\?"),
        ("optimiser: {lr: 1.0}", [], r"unknown key `optimiser` in .*: did you mean `optimizer`\?"),
        ("value: {lrr: 1.0}", [], r"unknown key `value\.lrr` .*did you mean `value\.lr`"),
        ("run: {zzz: 1}", [], r"unknown key `run\.zzz` in .*: `run` has name, seed"),
        (
            "sources: [{path: a, wait: 1}]",
            [],
            r"unknown key `sources\.0\.wait` .*did you mean `sources\.0\.weight`",
        ),
        (
            "models: {clip: {pat: a}}",
            [],
            r"unknown key `models\.clip\.pat` .*did you mean `models\.clip\.path`",
        ),
        ("", ["run.sed=1"], r"unknown key `run\.sed` in the override `run\.sed=1`: did you mean `run\.seed`"),
        ("run: {seed: many}", [], r"`run\.seed` in .*job\.yaml must be a whole number, not 'many'"),
        ("run: {seed: 1.5}", [], r"`run\.seed` .* must be a whole number, not 1\.5"),
        ("run: {seed: null}", [], r"`run\.seed` .* must be a whole number, not null"),
        ("optimizer: {lr: fast}", [], r"`optimizer\.lr` .* must be a number, not 'fast'"),
        ("optimizer: {nesterov: 7}", [], r"`optimizer\.nesterov` .* must be true or false, not 7"),
        ("run: {seed: true}", [], r"`run\.seed` .* must be a whole number, not True"),
        (
            "optimizer: {schedule: sawtooth}",
            [],
            r"`optimizer\.schedule` .* one of constant, linear, not 'sawtooth'",
        ),
        (
            "optimizer: {betas: 0.9}",
            [],
            r"`optimizer\.betas` .* must be a list of 2 items, each a number, not 0\.9",
        ),
        ("optimizer: {betas: [0.9]}", [], r"`optimizer\.betas` .* must be a list of 2 items"),
        ("blocks: two", [], r"`blocks` .* must be a whole number or null, not 'two'"),
        ("optimizer: 3", [], r"`optimizer` .* must be a section of keys, not 3"),
        ("optimizer:", [], r"`optimizer` .* must be a section of keys, not empty"),
        ("sources: [{path: a, weight: heavy}]", [], r"`sources` .* must be a list.*heavy"),
        ("", ["run.seed=x"], r"`run\.seed` in the override `run\.seed=x` must be a whole number, not 'x'"),
        ("", ["run.seed"], r"override `run\.seed` must have the form key=value"),
        ("", ["=1"], r"override `=1` must have the form key=value"),
        ("", ["sources.3.weight=1"], r"`sources\.3\.weight`"),
        ("optimizer: {lr: -1.0}", [], r"^optimizer\.lr must be positive, not -1\.0$"),
        ("[1, 2]", [], r"must hold `key: value` lines, not a list"),
        ("run: {seed: [1", [], r"job\.yaml is not valid YAML"),
        ("1: {a: 2}", [], r"the key 1 in .*job\.yaml must be text"),
        ("base: 7", [], r"`base` in .* must be the path"),
        ("base: gone.yaml", [], r"gone\.yaml does not exist"),
        ("base: job.yaml", [], r"is its own `base`"),
        ("run: {name: '${nowhere}'}", [], r"nowhere"),
    ],
)
def test_sentences(tmp_path: Path, text: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        config.load(Job, write(tmp_path / "job.yaml", text), overrides)
    assert "\n" not in str(caught.value)


def test_missing_file_missing_value_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        config.load(Job, tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        config.load(Job, tmp_path)
    with pytest.raises(UserError, match=r"job\.yaml must set `path`"):
        config.load(Strict, write(tmp_path / "job.yaml", "run: {seed: 1}"))
    with pytest.raises(UserError, match=r"must set `sources\[0\]\.path`"):
        config.load(Job, write(tmp_path / "job.yaml", "sources: [{weight: 1}]"))


def test_unknown_key_of_a_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "run: {sed: 1}")
    with pytest.raises(UserError, match=r"`run\.sed` in .*base\.yaml"):
        config.load(Job, write(tmp_path / "job.yaml", "base: base.yaml"))


def test_yaml_round_trip(tmp_path: Path) -> None:
    job = Job(
        Run("ü", 3), Optimizer(betas=(0.1, 0.2)), Optimizer(1.0), None, [Source("a")], {"m": Source("b", 2)}
    )
    assert config.load(Job, write(tmp_path / "job.yaml", config.to_yaml(job))) == job


def test_differences_are_dotted_and_sorted() -> None:
    a = Job(sources=[Source("a"), Source("b")])
    b = Job(Run(seed=1), Optimizer(betas=(0.9, 0.99)), Optimizer(), 1, [Source("a"), Source("c")])
    assert config.differences(a, a) == []
    assert config.differences(a, b) == [
        "blocks", "optimizer.betas", "run.seed", "sources.1.path", "value",
        "value.betas", "value.lr", "value.nesterov", "value.schedule",
    ]  # fmt: skip


def test_resume_allows_listed_keys_and_names_the_others(tmp_path: Path) -> None:
    saved = write(tmp_path / "config.yaml", config.to_yaml(Job()))
    same = config.load(Job, saved)
    assert config.check_resume(saved, same) == []
    longer = config.load(Job, saved, ["blocks=3", "optimizer.lr=1"])
    assert config.check_resume(saved, longer, {"blocks", "optimizer"}) == ["blocks", "optimizer.lr"]
    with pytest.raises(UserError, match=r"optimizer\.lr was 5e-05 and is now 1\.0;") as caught:
        config.check_resume(saved, longer, {"blocks", "opti"})
    assert "blocks" not in str(caught.value)
    with pytest.raises(UserError, match=r"blocks was null and is now 3.*optimizer\.lr was"):
        config.check_resume(saved, longer)
    fewer = write(tmp_path / "old.yaml", config.to_yaml(Job()).replace("blocks: null\n", ""))
    with pytest.raises(UserError, match="blocks was absent and is now null"):
        config.check_resume(fewer, same)
