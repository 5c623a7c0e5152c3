"""The report: self-contained, complete, escaped, honest about what was chosen by score, with the numbers of the
statistics; and the page of a run. What its script does is tested in tests/browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptist.errors import UserError
from promptist.evaluation import thumbnails
from promptist.evaluation.explorer import explorer
from promptist.evaluation.gallery import EXTREMES, changes, extremes, spread, unselected
from promptist.evaluation.page import script_json
from promptist.evaluation.paper import GAINS, order_of_gains, paper_set
from promptist.evaluation.report import build_report, read_evaluation, write_report
from promptist.evaluation.results import NO_INTERVAL, Difference, Interval, Results
from promptist.evaluation.statistics import analyse
from promptist.evaluation.table import MEASUREMENTS
from tests.helpers_report import EVIL, make_evaluation, write_runs, write_samples


class Page(HTMLParser):
    """The tags of a page, and the words outside scripts and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("em", "mark", "a", "strong"):
            self.parts.append(" ")
        if tag in ("script", "style"):
            self._script = dict(attrs).get("id") or tag
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.parts.append(data)
        else:
            self.scripts[self._script] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join("".join(self.parts).split())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation with its report."""
    folder = tmp_path_factory.mktemp("report") / "e"
    make_evaluation(folder, prompts=30)
    build_report(folder, write_runs(folder.parent))
    return folder


@pytest.fixture(scope="module")
def page(evaluation: Path) -> Page:
    return Page((evaluation / "report.html").read_text("utf-8"))


def test_the_page_needs_nothing_but_itself(evaluation: Path, page: Page) -> None:
    text = (evaluation / "report.html").read_text("utf-8")
    sources = [attrs["src"] or "" for attrs in page.all("img")]
    assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
    addresses = set(re.findall(r'https?://[^\s"\'<)]+', text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not page.all("iframe") and not any("src" in attrs for attrs in page.all("script"))
    assert all(attrs["href"] == "data:," for attrs in page.all("link"))
    assert page.all("meta")[1]["name"] == "viewport"
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    links = [attrs["href"] or "" for attrs in page.all("a")]
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(link[1:] in ids if link.startswith("#") else (evaluation / link).is_file() for link in links)


def test_shown_pictures_have_text_both_prompts_and_scores(evaluation: Path, page: Page) -> None:
    table = read_evaluation(evaluation).table
    assert all((attrs["alt"] or "").strip() for attrs in page.all("img"))
    shown = unselected(read_evaluation(evaluation), 3)
    assert len(shown) == 6
    for prompt in shown:
        assert prompt in page.words
        for text in table.texts:
            if text.prompt == prompt and text.replica == 0 and "@" not in text.method:
                assert text.painted in page.words
                value = table.value("aesthetic", text.method, prompt, 0, 0)
                assert f"aesthetic {value:.2f}" in page.words and "rival reward" in page.words
    assert "This prompt has none." in page.words
    assert not any("alert" in script for name, script in page.scripts.items() if name != "data")


def test_what_was_chosen_by_score_says_so_and_is_right(evaluation: Path, page: Page) -> None:
    found = read_evaluation(evaluation)
    best, worst = extremes(found)
    change = changes(found, "ppo")
    order = sorted(change, key=lambda x: change[x])
    assert best == order[: -EXTREMES - 1 : -1] and worst == order[:EXTREMES]
    user, ppo = found.table.scores("reward", "user"), found.table.scores("reward", "ppo")
    assert change[best[0]] == pytest.approx(ppo.of([best[0]]).mean() - user.of([best[0]]).mean())
    before, after = page.words.split("Best and worst cases")
    assert "not chosen by score" in before and after.startswith(" Chosen by score, unlike the pictures above")
    assert not set(unselected(found, 2)) >= set(best)


def test_two_prompts_make_no_best_and_worst_of_one(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e", prompts=3, checkpoints=())
    best, worst = extremes(read_evaluation(tmp_path / "e"))
    assert len(best) == len(worst) == 1 and best != worst


def test_figures_and_the_papers_table(page: Page) -> None:
    labels = [attrs["aria-label"] or "" for attrs in page.all("svg")]
    assert sum("by set and method" in label for label in labels) == 2
    assert (
        sum(
            label.startswith(("Curve: reward (what training optimises)", "Curve: rival reward (held out)"))
            for label in labels
        )
        == 2
    )
    for title in ("SFT: loss", "PPO: reward", "PPO: KL to SFT", "PPO: length", "PPO: share of different additions"):
        assert any(title in label for label in labels), title
    assert "Gains in reward, next to the paper's" in page.words and "Reward over KL" in page.words
    assert "training 0" in page.words and "training 1" in page.words  # two trainings of PPO
    assert page.words.count("validation") >= 1


def test_plots_follow_the_theme(evaluation: Path) -> None:
    text = (evaluation / "report.html").read_text("utf-8")
    assert "currentColor" in text and "#010203" not in text
    ids = re.findall(r'<(?:g|path|clipPath|rect|defs) id="((?:p|m)[0-9a-f]{8,})"', text)
    assert ids and len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)((?:p|m)[0-9a-f]{8,})', text)) <= set(ids)


def test_a_run_without_metrics_is_named(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e", prompts=4, checkpoints=())
    text = build_report(tmp_path / "e", {"ppo": [tmp_path / "gone"]}).read_text("utf-8")
    assert "No training curves: PPO" in text and 'id="training"' not in text and 'id="kl"' not in text


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e", prompts=6)
    runs = write_runs(tmp_path)
    for out in ("a", "b"):
        build_report(tmp_path / "e", runs, tmp_path / out)
    for name in ("report.html", "results.json", "results.csv", "results.md", "prompts.csv", "grid.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_links_from_another_folder(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e", prompts=4)
    report = build_report(tmp_path / "e", {}, tmp_path / "out" / "deep")
    page = Page(report.read_text("utf-8"))
    links = [attrs["href"] or "" for attrs in page.all("a") if not (attrs["href"] or "").startswith("#")]
    assert links and all((report.parent / link).is_file() for link in links)
    pictures = json.loads(page.scripts["data"])["pictures"]
    assert pictures and all((report.parent / path).is_file() for path in pictures)


def test_files_hold_the_statistics(evaluation: Path) -> None:
    table = read_evaluation(evaluation).table
    results = analyse(table, 0)
    assert json.loads((evaluation / "results.json").read_text("utf-8")) == json.loads(json.dumps(results.as_json()))
    assert (evaluation / "results.csv").stat().st_size and (evaluation / "results.md").stat().st_size
    with Image.open(evaluation / "grid.png") as grid:
        assert grid.width > 800
    rows = list(csv.DictReader(io.StringIO((evaluation / "prompts.csv").read_text("utf-8"))))
    assert len(rows) == len(table.texts)
    (row,) = [r for r in rows if (r["prompt"], r["method"], r["replica"]) == (EVIL, "ppo", "1")]
    both = [table.value("rival.reward", "ppo", EVIL, 1, k) for k in (0, 1)]
    assert row["rewrite"] == f"{EVIL}, ppo style 1" and row["set"] == "in"
    assert float(row["rival.reward"]) == pytest.approx(np.mean(both), rel=1e-12) and float(row["kl"]) == 3.0
    assert next(r for r in rows if r["method"] == "user")["kl"] == ""


def test_all_prompts_for_the_script(evaluation: Path, page: Page) -> None:
    data = json.loads(page.scripts["data"])
    table = read_evaluation(evaluation).table
    assert [m[0] for m in data["methods"]] == ["user", "human", "sft", "ppo"]  # checkpoints are a curve
    assert data["sets"] == ["in", "out"] and data["seeds"] == [0, 1] and data["replicas"] == [[0], [0], [0, 1], [0, 1]]
    assert [s[0] for s in data["scores"]] == ["reward", "aesthetic", "relevance", "cosine", "rival.reward"]
    small = page.scripts["thumbnails"].split("\n")
    assert len(data["prompts"]) == 30 and len(small) == len(data["pictures"])
    for x, name, cells in data["prompts"]:
        assert data["sets"][name] == table.set_of[x]
        assert (cells[1] is None) == (data["sets"][name] == "out")
        for (method, _), cell in zip(data["methods"], cells, strict=True):
            for replica, (y, scores, pictures) in enumerate(cell[1] if cell else ()):
                text = next(t for t in table.texts if (t.prompt, t.method, t.replica) == (x, method, replica))
                assert y == text.rewrite
                for seed in (0, 1):
                    for (metric, _, _), value in zip(data["scores"], scores[seed], strict=True):
                        assert value == pytest.approx(table.value(metric, method, x, replica, seed), abs=5e-4)
                    place = pictures[seed]
                    wanted = next(
                        p.path
                        for p in table.pictures
                        if (p.prompt, p.method, p.replica, p.seed) == (x, method, replica, seed)
                    )
                    assert data["pictures"][place] == wanted
                    assert bool(small[place]) == (replica == 0 and seed == 0)  # the others lie beside the page
    picture = Image.open(io.BytesIO(base64.b64decode(next(filter(None, small)))))
    assert picture.format == "WEBP" and max(picture.size) <= 64


def test_small_pictures_keep_to_their_budget(tmp_path: Path) -> None:
    """Noise is what compresses worst; 52 pictures of 200 x 150, more than are probed."""
    random = np.random.default_rng(3)
    paths = [tmp_path / f"{i}.png" for i in range(52)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (150, 200, 3), dtype=np.uint8)).save(path)
    for budget in (10_000_000, 500_000, 240_000):
        size, fit = thumbnails.choose(paths, budget)
        total = sum(4 * -(-len(thumbnails.encode(p, size)) // 3) for p in paths)
        assert fit == 52 and total <= 1.05 * budget
        larger = thumbnails.SIZES[max(0, thumbnails.SIZES.index(size) - 1)]
        if larger != size:
            assert sum(4 * -(-len(thumbnails.encode(p, larger)) // 3) for p in paths) > 0.95 * budget
    size, fit = thumbnails.choose(paths, 20_000)
    assert size == thumbnails.SIZES[-1] and 0 < fit < 52
    assert max(Image.open(io.BytesIO(thumbnails.encode(paths[0], size))).size) == size.pixels


def test_what_does_not_fit_is_loaded_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_evaluation(tmp_path / "e", prompts=10, checkpoints=())
    monkeypatch.setattr("promptist.evaluation.explorer._FLOOR", 0)
    found = read_evaluation(tmp_path / "e")
    whole, lines = explorer(found)
    assert sum(bool(line) for line in lines.split("\n")) == 10 + 5 + 10 + 10  # user, human, SFT, PPO
    data, lines = explorer(found, budget=len(whole.encode()) + 20_000)
    embedded = [line for line in lines.split("\n") if line]
    assert data == whole and 0 < len(embedded) < 35 and sum(map(len, embedded)) < 25_000


def test_json_in_a_script_ends_no_script() -> None:
    text = script_json({"x": "</script><!-- \u2028", "n": 1.5})
    assert "<" not in text and "\u2028" not in text and json.loads(text) == {"x": "</script><!-- \u2028", "n": 1.5}


def difference(set_name: str, method: str, mean: float) -> Difference:
    around = Interval(mean - 0.1, mean + 0.1)
    return Difference(set_name, "reward", method, "user", 9, mean, around, around, around, NO_INTERVAL)


def test_the_papers_sets_and_order() -> None:
    names = ["MC", "rtp", "coco", "DiffusionDB", "mine"]
    assert [paper_set(n) for n in names] == ["MC", "RTP", "out-of-domain", "in-domain", None]
    gains = {"MC": 0.1, "RTP": 0.3, "out-of-domain": 0.2, "mine": 9.0}
    results = Results(list(gains), ["user", "ppo"], [], [difference(s, "ppo", g) for s, g in gains.items()])
    assert order_of_gains(results, "ppo") == (
        "Sets by the gain of PPO, largest first: RTP +0.30, out-of-domain +0.20, MC +0.10; "
        "in the paper: out-of-domain +0.48, MC +0.47, RTP +0.25."
    )
    assert order_of_gains(results, "sft") == ""
    # The relative gains that the paper prints follow from its two columns.
    assert [round(100 * (rl / sft - 1)) for sft, rl in GAINS.values()] == [31, 6, 43, 127, 24, 71]


def test_prompts_at_even_distances() -> None:
    assert spread(list("abcdef"), 3) == ["b", "d", "f"] and spread(["a"], 3) == ["a"] and spread([], 3) == []


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="holds no finished evaluation"):
        build_report(tmp_path)
    (tmp_path / "config.yaml").write_text("methods: []\n")
    with pytest.raises(UserError, match="neither a finished evaluation nor an SFT or PPO run"):
        write_report(tmp_path)
    make_evaluation(tmp_path / "e", prompts=2)
    next((tmp_path / "e" / "images").glob("*-user-*")).write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read as a picture"):
        write_report(tmp_path / "e")
    (tmp_path / "e" / MEASUREMENTS).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not a table"):
        write_report(tmp_path / "e")


def run_page(run: Path) -> Page:
    assert write_report(run) == run.resolve() / "report.html"
    return Page((run / "report.html").read_text("utf-8"))


def test_page_of_a_run_still_going_on(tmp_path: Path) -> None:
    run = Path(write_runs(tmp_path)["ppo"][0])
    for step in (10, 20):
        write_samples(run, step)
    page = run_page(run)
    assert "PPO run ppo" in page.words and "59/100" in page.words and "No alarm" in page.words
    assert "What is watched" in page.words and "KL to the SFT model above 15 nats per rewrite" in page.words
    kl = [0.02 * s for s in range(1, 60)]
    assert f"KL to SFT (nats per rewrite) {np.mean(kl[:10]):.2f} {np.mean(kl[-10:]):.2f}" in page.words
    assert len(page.all("svg")) == 7
    assert page.words.index("0 of step 20") < page.words.index("0 of step 10")
    assert EVIL in page.words and "oil painting" in page.words and "left as it is" in page.words
    assert "score +0.50 aesthetic gain +0.62 relevance −0.12 KL 1.50" in page.words
    assert page.words.count("The picture is gone.") == 2
    images = page.all("img")
    assert len(images) == 10 and all((i["alt"] or "").startswith("Picture painted from") for i in images)
    assert all((run / (a["href"] or "")).is_file() for a in page.all("a") if not (a["href"] or "").startswith("#"))


def test_page_of_a_run_with_an_alarm(tmp_path: Path) -> None:
    run = Path(write_runs(tmp_path)["ppo"][0])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**r, "kl": float(r["step"])}) + "\n" for r in lines))
    page = run_page(run)
    assert (
        "1 alarm" in page.words and "KL (since step 20): The KL to the SFT model is 54.5 nats per rewrite" in page.words
    )
    assert any(attrs.get("class") == "alarms" for _, attrs in page.tags)


def test_page_of_sft_and_of_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    page = run_page(Path(runs["sft"][0]))
    assert "SFT run sft" in page.words and "Loss (nats per token)" in page.words and len(page.all("svg")) == 1
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.yaml").write_text("ppo:\n  iterations: 100\n")
    page = run_page(new)
    assert "No step is finished yet." in page.words and "too young to judge" in page.words and not page.all("svg")


def test_a_whole_evaluation_wins_over_its_config(evaluation: Path, tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e", prompts=2, checkpoints=())
    (tmp_path / "e" / "config.yaml").write_text("methods: []\n")
    written: Any = write_report(tmp_path / "e")
    assert "What the prompt optimiser learnt" in written.read_text("utf-8")
