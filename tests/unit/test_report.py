"""The report: self-contained, complete, escaped, honest in words, and with the numbers of the statistics."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptist.errors import UserError
from promptist.evaluation.evaluate import TABLE, write_table
from promptist.evaluation.gallery import THUMBNAIL, spread
from promptist.evaluation.report import META, build_report, write_report
from promptist.evaluation.statistics import ALL, Difference, Interval, Row, analyse
from promptist.evaluation.words import compare, percent, signed, summary

EVIL = 'a <script>alert("x")</script> & boat'
META_CONTENT = {
    "version": 1, "seed": 0, "namespace": "eval", "images": 2, "prompts": "abc", "painter": "def",
    "terms": {"slope": 20.0, "offset": 5.6}, "methods": [],
    "decoder": {"decoding": {"method": "beam", "beams": 8, "length_penalty": -1.0}, "max_new_tokens": 75},
    "runs": {},
}  # fmt: skip


def make_evaluation(folder: Path, gain: float = 0.8, prompts: int = 12, size: int = 64) -> list[Row]:
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(prompts):
        x = EVIL if i == 0 else f"boat {i}"
        for j, method in enumerate(("user", "human", "sft", "ppo")):
            if method == "human" and i % 2:
                continue
            y = x if method == "user" else "" if (i, method) == (1, "ppo") else f"{x}, {method} style"
            for k in range(2):
                picture = None
                if k == 0:
                    picture = f"images/{i}{method}.png"
                    pixels = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / picture)
                aesthetic = 5 + (gain if method == "ppo" else 0) + random.normal(0, 0.2)
                rows.append(
                    Row(x, "in" if i % 2 == 0 else "out", method, k, y, 0.3 - 0.01 * j, aesthetic, picture)
                )
    write_table(folder / TABLE, rows)
    (folder / META).write_text(json.dumps(META_CONTENT))
    return rows


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def write_runs(folder: Path) -> dict[str, str]:
    runs = {}
    for name in ("sft", "ppo"):
        (folder / name).mkdir()
        lines = []
        for step in range(1, 60):
            record: dict[str, float] = {
                "step": step,
                "loss": 1 / step,
                "score": 0.1,
                "reward": 0.1,
                "aesthetic": 0.2,
            }
            record |= {"relevance": -0.1, "kl": 0.01 * step, "length": 12.0}
            if step % 10 == 0:
                record |= {"valid/loss": 2 / step, "valid/score": 0.2}
            lines.append(json.dumps(record) + "\n")
        (folder / name / "metrics.jsonl").write_text("".join(lines))
        runs[name] = str(folder / name)
    return runs


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e")
    text = build_report(tmp_path / "e", write_runs(tmp_path)).read_text("utf-8")
    page = Page(text)
    sources = [attrs["src"] or "" for attrs in page.all("img")]
    assert len(sources) == 6 * 4 + 6 * 3  # a human-engineered prompt in one set only
    assert all(source.startswith("data:image/") for source in sources)
    addresses = set(re.findall(r'https?://[^\s"\'<)]+', text)) - {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert addresses == set()
    assert not page.all("script") and not page.all("iframe")
    assert all(attrs["href"] == "data:," for attrs in page.all("link"))
    assert page.all("meta")[1]["name"] == "viewport"
    assert not re.search(r"url\((?!#)", text) and "@import" not in text


def test_every_picture_has_text_and_both_prompts_are_there(tmp_path: Path) -> None:
    rows = make_evaluation(tmp_path / "e")
    page = Page(build_report(tmp_path / "e").read_text("utf-8"))
    assert all((attrs["alt"] or "").strip() for attrs in page.all("img"))
    words = " ".join("".join(page.words).split())
    for row in rows:
        assert row.prompt in words  # also the one with markup in it, as text
        if row.picture and row.rewrite:
            assert row.rewrite in words
            assert f"aesthetic {row.aesthetic:.2f}" in words
    assert "left as it is" in words
    assert "This prompt has none." in words


def test_curves_follow_the_theme(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e")
    text = build_report(tmp_path / "e", write_runs(tmp_path)).read_text("utf-8")
    assert text.count("<svg") == 7
    assert ">validation<" in re.sub(r"\s", "", text) and ">train<" in re.sub(r"\s", "", text)
    assert "currentColor" in text and "#010203" not in text
    ids = re.findall(r'<(?:g|path|clipPath|rect) id="([^"]+)"', text)
    referenced = set(re.findall(r'url\(#([^)]+)\)|href="#(p|m)[0-9a-f]+"', text))
    assert ids and referenced
    for title in (
        "PPO: reward",
        "PPO: aesthetic gain",
        "PPO: relevance",
        "PPO: KL to SFT",
        "PPO: length",
        "SFT: loss",
    ):
        assert title in text


def test_a_run_without_metrics_is_named(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e")
    text = build_report(tmp_path / "e", {"ppo": tmp_path / "gone"}).read_text("utf-8")
    assert "No training curves: PPO" in text and "<svg" not in text


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e")
    runs = write_runs(tmp_path)
    for out in ("a", "b"):
        build_report(tmp_path / "e", runs, tmp_path / out)
    for name in ("report.html", "results.json", "results.csv", "results.md", "grid.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_files_hold_the_statistics(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    results = analyse(make_evaluation(folder), 20.0, 5.6)
    assert write_report(folder) == folder.resolve() / "report.html"
    expected = results.difference("ppo", "sft", "reward", "out")
    assert expected is not None
    with open(folder / "results.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    (line,) = [
        v
        for v in lines
        if (v["set"], v["method"], v["baseline"], v["metric"]) == ("out", "ppo", "sft", "reward")
    ]
    assert float(line["mean"]) == expected.mean and float(line["t_low"]) == expected.t.low
    assert line["sure"] == "true"
    (empty,) = [v for v in lines if (v["set"], v["method"], v["metric"]) == ("out", "ppo", "empty_rewrites")]
    assert float(empty["mean"]) == pytest.approx(1 / 6)
    loaded = json.loads((folder / "results.json").read_text("utf-8"))
    assert loaded == json.loads(json.dumps(results.as_json()))
    table = (folder / "results.md").read_text("utf-8")
    level = results.level("ppo", "out")
    assert level is not None
    assert f"| out (6) | PPO | {signed(level.means['reward']).lstrip('+')} |" in table
    assert f"{signed(expected.mean)} [{signed(expected.t.low)}, {signed(expected.t.high)}]" in table
    for block in table.split("\n\n")[:2]:
        assert len({line.count("|") for line in block.strip().split("\n")}) == 1
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 800


def test_large_pictures_are_embedded_small(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e", prompts=2, size=2 * THUMBNAIL)
    report = build_report(tmp_path / "e")
    originals = sum(p.stat().st_size for p in (tmp_path / "e" / "images").iterdir())
    assert report.stat().st_size < originals / 3
    assert "data:image/jpeg;base64," in report.read_text("utf-8")


@pytest.mark.parametrize(
    ("t", "bootstrap", "words"),
    [
        ((0.1, 0.3), (0.1, 0.3), "PPO scores 0.20 more reward than SFT"),
        ((-0.3, -0.1), (-0.3, -0.1), "PPO scores 0.20 less reward than SFT"),
        ((-0.1, 0.5), (-0.1, 0.5), "the interval includes 0, so this evaluation cannot tell them apart"),
        ((0.01, 0.4), (-0.01, 0.4), "only one of the two intervals excludes 0"),
        ((np.nan, np.nan), (np.nan, np.nan), "too few to say anything"),
    ],
)
def test_sentences_are_honest(t: tuple[float, float], bootstrap: tuple[float, float], words: str) -> None:
    mean = 0.2 if np.isnan(t[0]) else (t[0] + t[1]) / 2
    found = compare(Difference("s", "reward", "ppo", "sft", 10, mean, Interval(*t), Interval(*bootstrap)))
    assert words in found
    assert ("more" in found or "less" in found) == ("scores" in words)


def test_summary_says_where_a_set_differs(tmp_path: Path) -> None:
    rows = make_evaluation(tmp_path / "e", gain=2.0, prompts=40)
    first = summary(analyse(rows, 20.0, 5.6))[0]
    assert first.startswith("PPO scores") and "The same holds in each of the 2 sets" in first
    plain = {(r.prompt, r.k): r.aesthetic for r in rows if r.method == "sft"}
    worse = [
        replace(r, aesthetic=plain[r.prompt, r.k] - 1) if r.method == "ppo" and r.set == "out" else r
        for r in rows
    ]
    first = summary(analyse(worse, 20.0, 5.6))[0]
    assert "out −1" in first and "same holds" not in first


def test_small_numbers_in_words() -> None:
    assert [percent(v) for v in (0, 0.004, 0.5, 0.996, 1)] == [
        "0 %",
        "under 1 %",
        "50 %",
        "over 99 %",
        "100 %",
    ]
    assert [signed(v) for v in (0.004, -0.004, 0.126, -2)] == ["0.00", "0.00", "+0.13", "−2.00"]
    assert spread(list("abcdef"), 3) == ["b", "d", "f"] and spread(["a"], 3) == ["a"] and ALL == "all"


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished evaluation"):
        build_report(tmp_path)
    make_evaluation(tmp_path / "e")
    (tmp_path / "e" / META).write_text("{")
    with pytest.raises(UserError, match="missing or damaged"):
        build_report(tmp_path / "e")
    (tmp_path / "e" / TABLE).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not a table"):
        build_report(tmp_path / "e")


def test_markdown_says_what_was_left_as_is(tmp_path: Path) -> None:
    """One of the six prompts of the second set was left alone by PPO; user and human rows rewrite nothing."""
    make_evaluation(tmp_path)
    write_report(tmp_path)
    lines = (tmp_path / "results.md").read_text().splitlines()
    cells = {tuple(line.split("|")[1:3]): line.split("|")[-2].strip() for line in lines if line.startswith("| out (6)")}
    assert [cells[" out (6) ", f" {name} "] for name in ("User input", "SFT", "PPO")] == ["", "0 %", "17 %"]
