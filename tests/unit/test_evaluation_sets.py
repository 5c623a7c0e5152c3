"""The miniature world's evaluation sets: fixed, large enough, and seen by no training."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from promptist.data.disjoint import check_disjoint, normalise
from promptist.errors import UserError
from promptist.evaluation.prompts import EvalPrompt, load_eval_prompts
from promptist.synthetic import evaluation_sets, grammar, prompts
from promptist.synthetic.evaluation_sets import CHOSEN_WITH, DEMO, KINDS, SETS, TEST, TRAINING, VALIDATION
from promptist.synthetic.grammar import Content

SEED = 1  # of the shipped world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    prompts.write_all(folder, SEED)
    evaluation_sets.write(folder, SEED)
    return folder


@pytest.fixture(scope="module")
def test_set(world: Path) -> list[EvalPrompt]:
    return load_eval_prompts(world / TEST)


@pytest.fixture(scope="module")
def validation(world: Path) -> list[EvalPrompt]:
    return load_eval_prompts(world / VALIDATION)


def content_of(text: str) -> Content:
    """What a text asks for, read off its words alone."""

    def only(entries: dict[str, tuple[str, ...]]) -> str:
        found = [name for name, names in entries.items() if any(f" {one} " in f" {text} " for one in names)]
        assert len(found) == 1, (text, found)
        return found[0]

    text = text.replace(",", " ").replace("green grass", "grass").replace("green tint", "tint")
    places = {name: tuple(p.replace("green ", "") for p in phrases) for name, phrases in grammar.PLACE_PHRASES.items()}
    return Content(only(grammar.OBJECT_WORDS), only({c: (c,) for c in grammar.COLOURS}), only(places))


def test_sizes(test_set: list[EvalPrompt], validation: list[EvalPrompt]) -> None:
    assert Counter(p.set for p in test_set) == {**dict.fromkeys(SETS, 200), "label": 9}
    assert Counter(p.set for p in validation) == dict.fromkeys(SETS, 40)


def test_files_are_fixed(world: Path) -> None:
    """Another hash is another evaluation: it needs another VERSION, and all its numbers again."""
    hashes = {name: hashlib.sha256((world / name).read_bytes()).hexdigest()[:16] for name in (TEST, VALIDATION)}
    assert hashes == {TEST: "e2534fd104a5c419", VALIDATION: "7232cd43a5976bcf"}


def test_contents_are_held_out_or_those_of_training(test_set: list[EvalPrompt], validation: list[EvalPrompt]) -> None:
    assert all(grammar.is_held_out(content_of(p.x)) for p in test_set if p.set != "label")
    assert not any(grammar.is_held_out(content_of(p.x)) for p in validation)
    assert {p.x for p in test_set if p.set == "label"} <= set(prompts.labels()[1])
    every = Counter(content_of(p.x) for p in test_set if p.set == "in-domain")
    assert len(every) > 90 and max(every.values()) <= 4  # contents take turns


def test_human_prompts_ask_for_the_same(test_set: list[EvalPrompt], validation: list[EvalPrompt]) -> None:
    for p in test_set + validation:
        if p.human is None:
            assert p.set in ("out-of-domain", "label")
        else:
            assert p.set in (*KINDS, "in-domain")
            assert content_of(p.human) == content_of(p.x)
            assert any(phrase in p.human for phrase in grammar.MODIFIER_BY_PHRASE)


def test_each_source_kind_is_what_the_paper_calls_so(test_set: list[EvalPrompt]) -> None:
    for p in test_set:
        caption, *modifiers = (p.human or "").split(", ")
        if p.set == "MC":
            assert p.x == caption
        elif p.set == "MCM":
            head, *kept = p.x.split(", ")
            assert head == caption and kept and set(kept) <= set(modifiers)
        elif p.set == "RMC":
            assert not any(phrase in p.x for phrase in grammar.MODIFIER_BY_PHRASE)
        elif p.set == "RTP":
            assert all(phrase in p.x for phrase in modifiers)
    assert len({p.human for p in test_set if p.set in KINDS}) > 700  # targets of their own, not the same four times


def test_no_training_and_no_choice_has_seen_the_test_set(world: Path, test_set: list[EvalPrompt]) -> None:
    files = [world / name for name in (*TRAINING, *CHOSEN_WITH, DEMO, VALIDATION)]
    check_disjoint([p.x for p in test_set], files)


def test_no_training_has_seen_the_validation_prompts(world: Path, validation: list[EvalPrompt]) -> None:
    check_disjoint([p.x for p in validation], [world / name for name in (*TRAINING, *CHOSEN_WITH, DEMO)])


def test_every_training_file_of_the_world_is_known(world: Path) -> None:
    files = {str(f.relative_to(world)) for f in world.rglob("*") if f.is_file()}
    assert files == {*TRAINING, *CHOSEN_WITH, DEMO, TEST, VALIDATION}


def test_a_text_stands_once(test_set: list[EvalPrompt], validation: list[EvalPrompt]) -> None:
    texts = [normalise(p.x) for p in test_set + validation]
    assert len(set(texts)) == len(texts)


def test_writing_again_changes_nothing(world: Path) -> None:
    before = {name: (world / name).read_bytes() for name in (TEST, VALIDATION)}
    evaluation_sets.write(world, SEED)
    assert {name: (world / name).read_bytes() for name in (TEST, VALIDATION)} == before


def test_a_world_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairs/train.jsonl does not exist"):
        evaluation_sets.write(tmp_path, SEED)
