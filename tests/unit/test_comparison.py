"""Sentences on differences, tables of them, and `promptist compare`: right, and honest where nothing can be told."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from promptist.cli import main
from promptist.errors import EXIT_BAD_INPUT
from promptist.evaluation.results import ALL, NO_INTERVAL, Difference, Interval
from promptist.evaluation.statistics import analyse
from promptist.evaluation.table import MEASUREMENTS, Table, write_table
from promptist.evaluation.tables import csv_text, difference_table, length_table, level_table, markdown, text_table
from promptist.evaluation.words import compare, interval, signed, summary
from tests.helpers_statistics import make_table

NO, YES = Interval(-0.1, 0.5), Interval(0.1, 0.3)


def difference(t: Interval, boot: Interval, t_corrected: Interval, boot_corrected: Interval) -> Difference:
    return Difference("s", "reward", "ppo", "sft", 10, 0.2, t, boot, t_corrected, boot_corrected, comparisons=12)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            difference(YES, YES, YES, YES),
            "PPO scores 0.20 more reward than SFT (95 % interval +0.10 to +0.30, corrected",
        ),
        (difference(YES, YES, NO, NO), "corrected for 12 comparisons it does not"),
        (difference(YES, YES, YES, NO), "corrected for 12 comparisons only one of the two does"),
        (difference(YES, NO, NO, NO), "only one of the two intervals excludes 0"),
        (difference(NO, NO, NO, NO), "the interval includes 0, so this evaluation cannot tell them apart"),
        (difference(NO_INTERVAL, NO_INTERVAL, NO_INTERVAL, NO_INTERVAL), "too few to say anything"),
    ],
)
def test_sentences_are_honest(found: Difference, words: str) -> None:
    sentence = compare(found)
    assert words in sentence
    assert ("scores" in sentence) == found.sure
    assert ("trainings" in sentence) == (found.replicas > 1)


def test_a_loss_is_called_less() -> None:
    down = Interval(-0.3, -0.1)
    found = replace(difference(down, down, down, down), mean=-0.2, metric="rival.reward", by_replica=[-0.1, -0.3])
    assert compare(found).startswith("PPO scores 0.20 less rival reward than SFT")
    assert "10 prompts, 2 trainings" in compare(found)


def test_summary_says_what_the_intervals_are_over() -> None:
    once, thrice = (summary(analyse(make_table(prompts=48, trainings=n))) for n in (1, 3))
    assert "Every method was trained once" in once[-2]
    assert "of prompts and of training seeds (3 trainings)" in thrice[-2]
    assert once[0].startswith("PPO scores") and "The same holds in each of the 2 sets" in once[0]
    (change,) = (s for s in once if s.startswith("Of PPO's change"))
    found = analyse(make_table(prompts=48)).difference("ppo", "user", "cosine", ALL)
    assert found is not None and found.in_units is not None
    assert f"or {signed(found.in_units[0])} ({interval(found.in_units[1])}) of its standard deviation" in change


def test_tables_hold_the_statistics() -> None:
    results = analyse(make_table(trainings=2, spread=0.1))
    lines = list(csv.DictReader(io.StringIO(csv_text(results))))
    keys = [(v["set"], v["length"], v["method"], v["baseline"], v["metric"]) for v in lines]
    assert len(set(keys)) == len(keys)
    found = results.difference("ppo", "user", "cosine", "out")
    (line,) = (v for v, key in zip(lines, keys, strict=True) if key == ("out", "", "ppo", "user", "cosine"))
    assert found is not None
    assert float(line["bootstrap_corrected_low"]) == found.bootstrap_corrected.low
    assert float(line["p_corrected"]) == found.p_corrected and line["comparisons"] == str(found.comparisons)
    assert float(line["unit"]) == found.unit and line["trainings"] == "2"
    (bucket,) = (v for v in lines if (v["length"], v["method"], v["metric"]) == ("10–20", "ppo", "reward"))
    assert float(bucket["mean"]) == next(
        v.means["reward"] for v in results.lengths if (v.length, v.method) == ("10–20", "ppo")
    )
    text = markdown(results)
    gain = results.difference("ppo", "sft", "reward", ALL)
    assert gain is not None and gain.sure
    assert f"**{signed(gain.mean)}** [{signed(gain.corrected.low)}, {signed(gain.corrected.high)}]" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.strip().split("\n") if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1
    for table in (level_table(results), difference_table(results), text_table(results), length_table(results)):
        assert table["groups"]
        assert all(len(r["cells"]) == len(table["heads"]) - 1 for group in table["groups"] for r in group["rows"])
    assert "Top addition" in text_table(results)["heads"] and "KL (nats)" not in text_table(results)["heads"]
    json.dumps(results.as_json(), allow_nan=False)


def write(folder: Path, table: Table) -> Path:
    folder.mkdir(parents=True)
    write_table(folder, table)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["compare", *map(str, words)])
    out = capsys.readouterr()
    return code, out.out if code == 0 else out.err


def test_compare_within_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(prompts=48, trainings=3, spread=0.05)
    write(tmp_path / "e", table)
    code, text = run(capsys, "ppo", "sft", "--root", tmp_path)  # the newest evaluation is found
    assert code == 0
    found = analyse(table).difference("ppo", "sft", "reward", ALL)
    assert found is not None and found.sure
    assert f"all sets: {compare(found)}" in text  # the numbers of the report
    assert ", ".join(signed(v) for v in found.by_replica) in text
    for part in ("  in: ", "  out: ", "Aesthetic", "CLIP cosine", "Not sure: "):
        assert part in text
    assert text.rstrip().endswith("with 95 % confidence all 11 intervals hold together.")
    code, text = run(capsys, "human", "sft", "--in", tmp_path / "e", "--metric", "cosine")
    assert code == 0 and "Reward" not in text
    assert "all 13 intervals" in text  # a pair that the report does not have: on one set and on all
    assert re.search(r"Not sure: CLIP cosine anywhere", text)
    swapped = run(capsys, "sft", "ppo", "--in", tmp_path / "e")[1]
    assert f"all sets: {compare(found)}" in swapped and "all 11 intervals" in swapped


def test_compare_over_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gains = {"user": 0.0, "ppo": 0.8}
    write(tmp_path / "a", make_table(prompts=48, gains=gains))
    worse = make_table(prompts=40, gains={"user": 0.0, "ppo": -0.5}, images=2)
    write(tmp_path / "b", worse)
    code, text = run(capsys, f"{tmp_path / 'a'}:ppo", f"{tmp_path / 'b'}:ppo", "--metric", "reward")
    assert code == 0
    assert re.search(r"all sets: a:ppo scores 1\.\d\d more reward than b:ppo .*40 prompts", text)
    code, text = run(capsys, f"{tmp_path / 'b'}:user", f"{tmp_path / 'a'}:ppo", "--metric", "reward")
    assert code == 0 and "User input and PPO" in text

    other = Table(worse.measures, worse.texts, [], {**worse.meta, "painter": "q"})
    write(tmp_path / "c", other)
    code, text = run(capsys, f"{tmp_path / 'a'}:ppo", f"{tmp_path / 'c'}:ppo")
    assert code == EXIT_BAD_INPUT and "painted and scored by different models (painter p and q)" in text
    moved = Table(
        [replace(m, prompt="other " + m.prompt) for m in worse.measures],
        [replace(t, prompt="other " + t.prompt) for t in worse.texts],
        [],
        worse.meta,
    )
    write(tmp_path / "d", moved)
    code, text = run(capsys, f"{tmp_path / 'a'}:ppo", f"{tmp_path / 'd'}:ppo")
    assert code == EXIT_BAD_INPUT and "share no prompt" in text


def test_compare_refuses_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "ppo", "sft", "--root", tmp_path)
    assert code == EXIT_BAD_INPUT and "no finished evaluation below" in text
    folder = write(tmp_path / "e", make_table(prompts=6))
    for words, sentence in [
        (("ppo", "gone"), "has no method 'gone', but user, sft, ppo, human"),
        (("ppo", "ppo"), "ppo is named twice"),
        (("ppo", "sft", "--metric", "beauty"), "'beauty' was not measured of both"),
    ]:
        code, text = run(capsys, *words, "--in", folder)
        assert code == EXIT_BAD_INPUT and sentence in text
    (folder / MEASUREMENTS).write_bytes(b"PAR1")
    code, text = run(capsys, "ppo", "sft", "--in", folder)
    assert code == EXIT_BAD_INPUT and "is not a table" in text
