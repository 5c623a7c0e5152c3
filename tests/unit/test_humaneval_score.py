"""`promptist humaneval score`: raters whose answers are made up, numbers worked out by hand or by other software."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from promptist.errors import UserError
from promptist.humaneval.cli import main
from promptist.humaneval.ratings import read_ratings
from promptist.humaneval.scores import Scores, alpha, resample, score
from promptist.humaneval.study import Pair, Showing, Study
from promptist.humaneval.words import summary
from tests.helpers_humaneval import answer, prefer, save, write_evaluation

LABELS = {"ppo": "PPO", "user": "User input", "human": "Human-engineered"}


def study_of(pairs: int, raters: int, *, second: str = "user", identical: int = 0, again: int = 0) -> Study:
    """Pairs of ppo against `second`, alternately in the sets a and b; ppo on the left at even pairs, and on the other
    side for the next rater. The last `identical` are not shown, the first `again` twice."""
    made = [
        Pair(f"q{i}", "ppo", second, f"prompt {i}", "ab"[i % 2], 0, (0, 0), (f"p{i}", f"s{i}"))
        for i in range(pairs - identical)
    ]
    orders = []
    for rater in range(raters):
        order = [Showing(p.id, *(p.pictures if (i + rater) % 2 == 0 else p.pictures[::-1])) for i, p in enumerate(made)]
        orders.append(order + [Showing(s.pair, s.right, s.left) for s in order[:again]])
    made += [
        Pair(f"q{i}", "ppo", second, f"prompt {i}", "ab"[i % 2], 0, (0, 0), ("", ""))
        for i in range(pairs - identical, pairs)
    ]
    return Study(0, "eval", "table", again, LABELS, made, orders, "0123456789abcdef")


def files(study: Study, folder: Path, likes: Callable[[int, int, bool], str | None]) -> list[Path]:
    """One file a rater; `likes(rater, pair number, shown again) -> method or None`."""
    paths = []
    for rater in range(1, len(study.orders) + 1):
        seen: set[str] = set()

        def choose(pair: Pair, showing: Showing, rater: int = rater, seen: set[str] = seen) -> str:
            again = pair.id in seen
            seen.add(pair.id)
            return prefer(pair, showing, likes(rater, int(pair.id[1:]), again))

        paths.append(save(folder / f"ratings-{rater}.json", answer(study, rater, choose)))
    return paths


def scored(study: Study, folder: Path, likes: Callable[[int, int, bool], str | None]) -> Scores:
    return score(study, read_ratings(study, files(study, folder, likes)))


# Six pairs, three raters: each row is a pair, + for ppo, - for user, 0 for equally good.
BY_HAND = ["+++", "++-", "+00", "+-0", "--+", "000"]
METHOD = {"+": "ppo", "-": "user", "0": None}


def by_hand(rater: int, pair: int, again: bool) -> str | None:
    return METHOD[BY_HAND[pair][rater - 1]]


def test_shares_and_votes_by_hand(tmp_path: Path) -> None:
    found = scored(study_of(6, 3), tmp_path, by_hand)
    whole = found.overall()[0]
    # + : 3 + 2 + 1 + 1 + 1 = 8 of 18; - : 0 + 1 + 0 + 1 + 2 = 4; the other 6 are equal.
    assert whole.shares == pytest.approx((8 / 18, 6 / 18, 4 / 18))
    assert whole.net == pytest.approx(4 / 18)
    # Votes: +++ won, ++- won, +00 won, +-0 tied, --+ lost, 000 tied.
    assert (whole.won, whole.tied, whole.lost) == (3, 2, 1)
    # Three of four heads: two-sided p = 2 * (1 + 4) / 16. Clopper-Pearson of 3 of 4 from any table: 0.1941, 0.9937.
    assert whole.p == pytest.approx(10 / 16)
    assert whole.won_share == 0.75
    assert whole.won_interval == pytest.approx((0.1941, 0.9937), abs=5e-5)
    assert whole.p_holm == whole.p
    # Sets: a has pairs 0, 2, 4, b has 1, 3, 5.
    a, b = found.preferences[1:]
    assert [(p.set, p.prompts, p.ratings, p.p_holm) for p in (a, b)] == [("a", 3, 9, None), ("b", 3, 9, None)]
    assert a.shares == pytest.approx((5 / 9, 2 / 9, 2 / 9))
    assert b.shares == pytest.approx((3 / 9, 4 / 9, 2 / 9))


def test_identical_pairs_are_ties_of_every_rater(tmp_path: Path) -> None:
    found = scored(study_of(8, 3, identical=2), tmp_path, by_hand)
    whole = found.overall()[0]
    assert whole.shares == pytest.approx((8 / 24, 12 / 24, 4 / 24))
    assert (whole.won, whole.tied, whole.lost, whole.identical, whole.prompts) == (3, 4, 1, 2, 8)
    assert found.agreements[0].pairs == 6  # nobody judged them
    assert found.habits[0].decided == 12
    only = scored(study_of(6, 3), tmp_path, by_hand)
    assert found.agreements[0].ordinal == only.agreements[0].ordinal


def test_sides_do_not_matter_to_preferences(tmp_path: Path) -> None:
    """The same opinions give the same preferences, whatever the sides."""
    study = study_of(6, 3)
    turned = replace(study, orders=[[Showing(s.pair, s.right, s.left) for s in order] for order in study.orders])
    assert scored(turned, tmp_path, by_hand).preferences == scored(study, tmp_path, by_hand).preferences


def test_swapping_the_methods_mirrors_everything(tmp_path: Path) -> None:
    study = study_of(6, 3)
    mirrored = replace(
        study,
        pairs=[replace(p, first=p.second, second=p.first, pictures=p.pictures[::-1]) for p in study.pairs],
    )
    ours, theirs = (scored(s, tmp_path, by_hand).overall()[0] for s in (study, mirrored))
    assert ours.shares == theirs.shares[::-1]
    assert (ours.won, ours.lost, ours.p) == (theirs.lost, theirs.won, theirs.p)
    one, other = (scored(s, tmp_path, by_hand).agreements[0] for s in (study, mirrored))
    assert (one.ordinal, one.nominal) == pytest.approx((other.ordinal, other.nominal))


def test_position_bias_and_self_agreement_by_hand(tmp_path: Path) -> None:
    """Rater 1 always takes A, so never agrees with himself; rater 2 has opinions; rater 3 sees no difference."""
    study = study_of(8, 3, again=2)
    paths = [
        save(tmp_path / "1.json", answer(study, 1, lambda pair, showing: "left")),
        save(tmp_path / "2.json", answer(study, 2, lambda pair, showing: prefer(pair, showing, "ppo"))),
        save(tmp_path / "3.json", answer(study, 3, lambda pair, showing: "equal")),
    ]
    everybody, one, two, three = score(study, read_ratings(study, paths)).habits
    assert (one.left, one.decided, one.repeats, one.same) == (8, 8, 2, 0)
    assert one.left_p == pytest.approx(2 / 2**8)
    assert (two.left, two.decided, two.repeats, two.same) == (4, 8, 2, 2)
    assert two.left_p == 1
    assert (three.left, three.decided, three.repeats, three.same, three.left_p) == (0, 0, 2, 2, None)
    assert (everybody.left, everybody.decided, everybody.repeats, everybody.same) == (12, 16, 6, 4)
    assert everybody.left_p == pytest.approx(stats.binomtest(12, 16).pvalue)
    assert everybody.seconds == 1.5


def test_alpha_of_the_published_example() -> None:
    """Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units, five
    values: nominal 0.743, ordinal 0.815."""
    nan = math.nan
    data = np.array([
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ])  # fmt: skip
    counts = np.stack([(data == value).sum(0) for value in range(1, 6)], 1)
    assert round(alpha(counts, "nominal"), 3) == 0.743
    assert round(alpha(counts, "ordinal"), 3) == 0.815


def test_alpha_by_hand(tmp_path: Path) -> None:
    """BY_HAND from the definition: alpha = 1 - D_o / D_e over all ordered pairs of ratings of a pair, and of all."""
    value = {"+": 0, "0": 1, "-": 2}
    units = [[value[mark] for mark in row] for row in BY_HAND]
    n = np.bincount([v for unit in units for v in unit], minlength=3)  # 8, 6, 4

    def distance(c: int, k: int, ordinal: bool) -> float:
        low, high = min(c, k), max(c, k)
        return (sum(n[low : high + 1]) - (n[low] + n[high]) / 2) ** 2 if ordinal else float(c != k)

    for ordinal, name in ((True, "ordinal"), (False, "nominal")):
        observed = sum(distance(a, b, ordinal) for unit in units for i, a in enumerate(unit) for j, b in enumerate(unit)
                       if i != j) / 2 / 18  # fmt: skip
        everything = [v for unit in units for v in unit]
        expected = sum(distance(a, b, ordinal) for i, a in enumerate(everything) for j, b in enumerate(everything)
                       if i != j) / (18 * 17)  # fmt: skip
        found = getattr(scored(study_of(6, 3), tmp_path, by_hand).agreements[0], name)
        assert found == pytest.approx(1 - observed / expected)


def test_alpha_where_it_is_not_defined(tmp_path: Path) -> None:
    assert scored(study_of(6, 1), tmp_path, by_hand).agreements[0].ordinal is None
    assert scored(study_of(6, 3), tmp_path, lambda *_: "ppo").agreements[0].ordinal is None
    perfect = scored(study_of(6, 3), tmp_path, lambda rater, pair, again: "ppo" if pair % 2 else None).agreements[0]
    assert (perfect.ordinal, perfect.nominal, perfect.ordinal_interval) == (1, 1, (1, 1))


def test_one_rater_bootstrap_agrees_with_scipy(tmp_path: Path) -> None:
    """With one rater and one set the interval is the plain bootstrap over prompts."""
    values = np.array([1] * 22 + [0] * 8 + [-1] * 10)
    is_value = np.stack([values == v for v in (1, 0, -1)])[:, :, None]
    drawn = resample(is_value, ["a"] * 40, "test", resamples=20_000)
    for part, value in enumerate((1, 0, -1)):
        theirs = stats.bootstrap(((values == value).astype(float),), np.mean, method="percentile", n_resamples=20_000,
                                 rng=np.random.default_rng(1))  # fmt: skip
        assert np.quantile(drawn[:, part], [0.025, 0.975]) == pytest.approx(list(theirs.confidence_interval), abs=0.026)
        assert drawn[:, part].std() == pytest.approx(theirs.standard_error, rel=0.03)


def test_resampling_keeps_sets_and_missing_answers_apart() -> None:
    """A set whose prompts are all won and one whose are all lost, equally many: the share does not vary. A rater who
    answered nothing adds nothing."""
    values = np.array([[1.0, np.nan]] * 5 + [[-1.0, np.nan]] * 5)
    is_value = np.stack([values == v for v in (1, 0, -1)])
    drawn = resample(is_value, ["a"] * 5 + ["b"] * 5, "test", resamples=500)
    assert np.all(drawn == [0.5, 0, 0.5])
    assert 0.65 < len(drawn) / 500 < 0.85  # in a quarter of the draws the silent rater is drawn twice


@pytest.mark.parametrize("lean", [0.0, 0.1])
def test_false_positives_where_nobody_prefers_anything(lean: float) -> None:
    """200 studies of 60 prompts and 3 raters. Raters agree on half of the prompts, and each has a lean of his own,
    but on average no method is preferred: the interval of the difference excludes 0 in at most 7 %, where a test that
    takes ratings for independent finds a difference in more than 10 %."""
    generator = np.random.default_rng(3)
    wrong = naive = 0
    for study in range(200):
        taste = generator.choice([1, 0, -1], 60, p=[0.4, 0.2, 0.4])
        values = np.empty((60, 3))
        for rater in range(3):
            ppo = np.clip(0.4 + lean * generator.standard_normal(), 0, 0.8)
            own = generator.choice([1, 0, -1], 60, p=[ppo, 0.2, 0.8 - ppo])
            values[:, rater] = np.where(generator.random(60) < 0.5, taste, own)
        drawn = resample(np.stack([values == v for v in (1, 0, -1)]), ["a"] * 60, "test", study, resamples=500)
        low, high = np.quantile(drawn[:, 0] - drawn[:, 2], [0.025, 0.975])
        wrong += low > 0 or high < 0
        won, lost = int((values == 1).sum()), int((values == -1).sum())
        naive += stats.binomtest(won, won + lost).pvalue < 0.05
    print(f"lean {lean}: {wrong} of 200, independent ratings {naive} of 200")
    assert wrong <= 0.07 * 200
    assert naive > 0.10 * 200


def test_holm_over_the_comparisons(tmp_path: Path) -> None:
    """Worked out by hand: p 0.0390625 (8 : 1) and 0.00390625 (9 : 0); the smaller is doubled, the larger kept."""
    user, human = study_of(9, 1), study_of(9, 1, second="human")
    human = replace(
        human,
        pairs=[replace(p, id=p.id.replace("q", "h")) for p in human.pairs],
        orders=[[replace(s, pair=s.pair.replace("q", "h")) for s in order] for order in human.orders],
    )
    both = replace(user, pairs=user.pairs + human.pairs, orders=[user.orders[0] + human.orders[0]])
    path = save(
        tmp_path / "r.json",
        answer(both, 1, lambda pair, s: prefer(pair, s, "user" if pair.id == "q3" else "ppo")),
    )
    found = {p.second: p for p in score(both, read_ratings(both, [path])).overall()}
    assert found["user"].p == pytest.approx(0.0390625)
    assert found["human"].p == pytest.approx(0.00390625)
    assert found["human"].p_holm == pytest.approx(0.0078125)
    assert found["user"].p_holm == pytest.approx(0.0390625)


def test_words_say_what_is_sure_and_what_not(tmp_path: Path) -> None:
    def said(likes: Callable[[int, int, bool], str | None], raters: int = 3, pairs: int = 30) -> str:
        return " ".join(summary(scored(study_of(pairs, raters, again=2), tmp_path, likes), LABELS))

    clear = said(lambda rater, pair, again: "user" if pair % 10 == rater else "ppo")
    assert "PPO was preferred in 90 % of 90 ratings, User input in 10 %, 0 % were equally good (30 prompts)" in clear
    assert "people prefer PPO." in clear
    assert (
        "By majority vote PPO wins 30, ties 0 and loses 0 of 30 prompts: 100 % of those not tied (88 to 100 %)" in clear
    )
    assert "sign test p < 0.001, sure at the 5 % level" in clear
    assert "below the customary limit of 0.667" in clear
    assert "no sure position bias" in clear
    unsure = said(lambda rater, pair, again: "ppo" if pair % 2 else "user")
    assert "the interval includes 0, so this study cannot tell whom people prefer" in unsure
    assert "sign test p = 1.00, not sure" in unsure
    assert "alpha 1.00 (1.00 to 1.00), reliable" in unsure
    worse = said(lambda rater, pair, again: "user")
    assert "people prefer User input." in worse
    assert "all answers are the same" in worse
    none = said(lambda *_: None)
    assert "without a win or a loss there is nothing to test" in none
    assert "One rater: the intervals say how the prompts vary" in said(by_hand, 1, 6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_evaluation(folder / "eval")
    main([
        "make", str(folder / "eval"), "--pairs", "ppo:user", "ppo:human", "--prompts", "8", "--raters", "3",
        "--repeat", "2", "--out", str(folder / "out"),
    ])  # fmt: skip
    return folder / "out"


def ppo_liked(study: Study, rater: int) -> dict[str, Any]:
    return answer(study, rater, lambda pair, s: prefer(pair, s, "ppo" if pair.second == "user" else None))


def test_files_of_a_score(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.read(made)
    paths = [save(tmp_path / f"{r}.json", ppo_liked(study, r)) for r in (1, 2, 3)]
    main(["score", str(made), *map(str, paths)])
    out = made / "scores"
    assert sorted(p.name for p in out.iterdir()) == [
        "preferences.png", "preferences.svg", "ratings.csv", "scores.csv", "scores.json", "summary.md",
    ]  # fmt: skip
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    found = json.loads(first["scores.json"])
    with (out / "ratings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, study.orders)) == found["answered"]
    # Unblinded independently of the code: the preferred picture's file belongs to the preferred method.
    of_picture = {i: m for p in study.shown for i, m in zip(p.pictures, (p.first, p.second))}
    answers = [a for path in paths for a in json.loads(path.read_text())["answers"]]
    for row, given in zip(rows, answers, strict=True):
        assert (row["left"], row["right"]) == (of_picture[given["left"]], of_picture[given["right"]])
        assert row["preferred"] == ("" if given["choice"] == "equal" else of_picture[given[given["choice"]]])
    with (out / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    for row, preference in zip(table, found["preferences"], strict=True):
        assert float(row["share_first"]) == preference["shares"][0]
        assert [float(row["net_low"]), float(row["net_high"])] == preference["net_interval"]
    same = sum(pair.identical for pair in study.pairs if pair.second == "user")
    user = next(row for row in table if row["second"] == "user" and row["set"] == "all")
    assert float(user["share_first"]) == pytest.approx((8 - same) / 8)
    svg = first["preferences.svg"].decode()
    assert all(text in svg for text in ("PPO better", "equally good", "User input better", "Human-engineered better"))
    assert first["preferences.png"][:8] == b"\x89PNG\r\n\x1a\n"
    said = " ".join(capsys.readouterr().out.replace("\n  ", " ").split())
    for line in first["summary.md"].decode().splitlines():
        if line.startswith("- "):
            assert line[2:] in said
    main(["score", str(made), *map(str, reversed(paths))])
    assert {p.name: p.read_bytes() for p in out.iterdir()} == first  # order of files and repetition change nothing


def changed(found: dict[str, Any], place: int, **values: Any) -> dict[str, Any]:
    answers = list(found["answers"])
    answers[place] = {**answers[place], **values}
    return {**found, "answers": answers}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: {**f, "study": "ffff"}, "belongs to study ffff, the key is of study"),
        (lambda f: {**f, "format": "other"}, "not a file that a rater saved"),
        (lambda f: {**f, "version": 9}, "not a file that a rater saved"),
        (lambda f: [f], "not a file that a rater saved"),
        (lambda f: {**f, "rater": 4}, "the study has raters 1 to 3, none is 4"),
        (lambda f: {**f, "rater": "1"}, "the study has raters 1 to 3, none is '1'"),
        (lambda f: {**f, "answers": f["answers"][1:]}, "has 17 pairs to answer; the file was changed"),
        (lambda f: {**f, "answers": [None, *f["answers"][1:]]}, "rater 1 answered 16 of 17 pairs; let them go on"),
        (lambda f: changed(f, 2, pair="feedfeed"), "answer 3 is about pair feedfeed"),
        (lambda f: changed(f, 2, left="feedfeed"), "with pictures feedfeed and"),
        (lambda f: changed(f, 2, choice="both"), "answer 3 is 'both', not one of left, right, equal"),
        (lambda f: changed(f, 2, ms="long"), "answer 3 lacks an id, the choice or the time"),
        (lambda f: {**f, "rater": 2}, "which rater 2 was not shown there"),
    ],
)
def test_bad_results(made: Path, tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    study = Study.read(made)
    assert len(study.orders[0]) == 17
    path = save(tmp_path / "r.json", change(ppo_liked(study, 1)))
    with pytest.raises(UserError, match=said):
        read_ratings(study, [path])


def test_bad_files(made: Path, tmp_path: Path) -> None:
    study = Study.read(made)
    one = save(tmp_path / "one.json", ppo_liked(study, 1))
    two = save(tmp_path / "two.json", ppo_liked(study, 1))
    with pytest.raises(UserError, match=r"two.json and .*one.json are both of rater 1"):
        read_ratings(study, [one, two])
    with pytest.raises(UserError, match="does not exist"):
        read_ratings(study, [tmp_path / "none.json"])
    (tmp_path / "half.json").write_text('{"format": "promp')
    with pytest.raises(UserError, match="cannot be read as a rater's file"):
        read_ratings(study, [tmp_path / "half.json"])
    with pytest.raises(UserError, match="is no study"):
        Study.read(tmp_path)
    (tmp_path / "key.json").write_text((made / "key.json").read_text()[:-500])
    with pytest.raises(UserError, match="is damaged"):
        Study.read(tmp_path)


def test_incomplete_raters(made: Path, tmp_path: Path) -> None:
    """What there is counts if one asks for it; a comparison without a rating is said."""
    study = Study.read(made)
    whole, part = ppo_liked(study, 1), ppo_liked(study, 2)
    part["answers"] = [a if i < 6 else None for i, a in enumerate(part["answers"])]
    paths = [save(tmp_path / "1.json", whole), save(tmp_path / "2.json", part)]
    found = score(study, read_ratings(study, paths, allow_incomplete=True))
    assert (found.answered, found.asked) == (17 + 6, 34)
    same = sum(pair.identical for pair in study.pairs)
    asked = {pair.id: pair for pair in study.shown}
    early = sum(asked[s.pair].second == "user" for s in study.orders[1][:6])
    user = next(p for p in found.overall() if p.second == "user")
    assert user.ratings == 8 + early + same
    nothing = {**part, "answers": [None] * 17}
    with pytest.raises(UserError, match="rater 2 answered nothing"):
        read_ratings(study, [save(tmp_path / "3.json", nothing)], allow_incomplete=True)
    only = {**whole, "answers": [a if asked[a["pair"]].second == "human" else None for a in whole["answers"]]}
    path = save(tmp_path / "4.json", only)
    with pytest.raises(UserError, match="nobody has rated a pair of ppo:user yet"):
        score(study, read_ratings(study, [path], allow_incomplete=True))
