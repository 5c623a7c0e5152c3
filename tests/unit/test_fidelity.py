"""What a rewrite keeps of its prompt: every figure worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptist.errors import UserError
from promptist.evaluation.fidelity import COLOURS, Lexicon, css_colours, text_metrics
from promptist.synthetic import grammar

MINIATURE = Path("configs/demo/lexicon.yaml")
LEXICON = Lexicon.load()
KEPT = {"words_kept": 1.0, "swapped": 0.0, "numbers_kept": 1.0, "negations_kept": 1.0, "empty": 0.0}


@pytest.mark.parametrize(
    ("x", "y", "other_than_kept"),
    [
        ("a red boat", "", {"empty": 1.0}),
        ("a red boat", "  ", {"empty": 1.0}),
        ("a red boat on the sea", "Red boats at sea, golden hour", {}),
        ("a red boat on the sea", "a boat, golden hour", {"words_kept": 1 / 3}),  # red and sea are lost, boat is kept
        ("the of and", "a red boat", {}),  # nothing to keep
        ("", "a red boat", {}),
        # Stop words of newspapers that are content of pictures.
        ("a fire in the old mill", "an old mill, 8k", {"words_kept": 2 / 3}),
        # Colours: replaced, kept beside another, dropped, two for one, named otherwise.
        ("a red boat", "a blue boat", {"words_kept": 0.5, "swapped": 1.0}),
        ("a red boat", "a red boat, green tint", {}),
        ("a red boat", "a boat", {"words_kept": 0.5}),
        ("a red and yellow boat", "a green boat", {"words_kept": 1 / 3, "swapped": 2.0}),
        ("a grey cat", "a gray cat", {}),
        ("a boat in the snow", "a gold boat", {"words_kept": 0.5}),  # snow is weather here, not a colour
        ("two darkred boats", "two red boats", {"words_kept": 0.5}),
        # Numbers.
        ("3 cats", "three cats, 4k", {}),
        ("three cats", "3 cats", {}),
        ("three cats", "4 cats", {"numbers_kept": 0.0}),
        ("2 cats and five dogs", "cats and five dogs", {"numbers_kept": 0.5}),
        ("one cat", "a cat", {}),
        ("one cat", "cats", {"numbers_kept": 0.0}),
        ("twenty-one cats, two hundred dogs, a dozen birds", "21 cats, 200 dogs, 12 birds", {"words_kept": 1.0}),
        ("a dozen birds", "12 birds", {}),
        ("1,000 birds", "a thousand birds", {}),
        ("a crowd of 2.5 million", "a crowd of 2500000", {}),
        ("4k photo of a cat", "photo of a cat", {"words_kept": 2 / 3}),  # 4k is a word, no number
        ("(red:1.2) boat", "red boat", {}),  # a weight is no number
        ("red::2 boat --ar 16:9", "red boat", {}),
        ("50 year old man, 35mm", "50 year old man, 35mm, sharp", {}),
        # Negations.
        ("a street without people", "an empty street without any people, 8k", {}),
        ("a street without people", "a street with no people", {}),
        ("a street without people", "a street with people", {"negations_kept": 0.0}),
        ("a street without people", "a street, 8k", {"words_kept": 0.5, "negations_kept": 0.0}),
        ("a logo, no text", "a logo, no text, no watermark", {}),
        ("a logo, no text or people", "a logo, no text", {"words_kept": 2 / 3, "negations_kept": 0.5}),
        ("a logo, no text or people", "a logo, no people, no text", {}),
        ("no red cars", "no cars", {"words_kept": 0.5, "negations_kept": 0.0}),
        ("a cat that isn't black", "a cat that is not black", {}),
        ("a cat that isn't black", "a black cat", {"negations_kept": 0.0}),
        ("no text on a sign", "a sign, text", {"negations_kept": 0.0}),
        ("a cat, not in the house", "a house, a cat", {"negations_kept": 0.0}),
        # All at once.
        (
            "two red cats without collars",
            "three blue cats with collars",
            {"words_kept": 2 / 3, "swapped": 1.0, "numbers_kept": 0.0, "negations_kept": 0.0},
        ),
    ],
)
def test_by_hand(x: str, y: str, other_than_kept: dict[str, float]) -> None:
    assert text_metrics(x, y, LEXICON) == pytest.approx({**KEPT, **other_than_kept})


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [  # prompts as people write them
        (
            "anthropomorphic crow werecreature, photograph captured in a forest",
            "photograph of an anthropomorphic crow captured in a dark forest, highly detailed, greg rutkowski",
            {**KEPT, "words_kept": 5 / 6},  # werecreature
        ),
        (
            "close up photo of anthropomorphic fox animal dressed in white shirt and khaki cargo pants, glasses",
            "anthropomorphic fox in a black shirt and cargo pants, close-up photo, studio lighting",
            # animal, dressed, white, khaki and glasses are lost, seven are kept
            {**KEPT, "words_kept": 7 / 12, "swapped": 2.0},
        ),
        (
            "three sailboats on a calm sea at sunset, no clouds",
            "3 sailboats on a calm sea, sunset, dramatic clouds, artstation",
            {**KEPT, "negations_kept": 0.0},
        ),
    ],
)
def test_real_looking_prompts(x: str, y: str, expected: dict[str, float]) -> None:
    assert text_metrics(x, y, LEXICON) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("x", "y", "words_kept", "swapped"),
    [
        ("a red house by the sea", "a red home on the beach, rainbow", 1.0, 0),
        ("a red house by the sea", "a red car by the sea", 2 / 3, 1),
        ("a red house by the sea", "a blue car in the desert", 0.0, 3),
        ("a red house by the sea", "abstract swirls", 0.0, 0),  # dropped, not replaced
        ("the house", "a car beside the house", 1.0, 0),
    ],
)
def test_the_miniatures_lexicon(x: str, y: str, words_kept: float, swapped: int) -> None:
    found = text_metrics(x, y, Lexicon.load(MINIATURE))
    assert (found["words_kept"], found["swapped"]) == (pytest.approx(words_kept), swapped)


def test_the_miniatures_lexicon_is_its_grammar() -> None:
    classes = Lexicon.load(MINIATURE).classes
    assert classes[COLOURS] == [[colour] for colour in grammar.COLOURS]
    assert classes["objects"] == [list(entry) for entry in grammar.OBJECT_WORDS.values()]
    assert classes["places"] == [list(entry) for entry in grammar.PLACE_PHRASES.values()]


def test_css_colours() -> None:
    entries = css_colours()
    names = [name for entry in entries for name in entry]
    assert ["gray", "grey"] in entries and ["aqua", "cyan"] in entries
    assert {"red", "black", "teal", "gold"} <= set(names)
    assert not {"snow", "darkred", "salmon", "hotpink"} & set(names)


def test_a_file_adds_to_the_colours_or_replaces_them(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"objects": [["house", "home"], "boat"]}')
    (tmp_path / "b.yaml").write_text("colours: [scarlet, azure]\n")
    added = Lexicon.load(tmp_path / "a.json")
    assert added.classes == {COLOURS: css_colours(), "objects": [["house", "home"], ["boat"]]}
    assert Lexicon.load(tmp_path / "b.yaml").classes == {COLOURS: [["scarlet"], ["azure"]]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- house\n", "must map names"),
        ("objects: house\n", "`objects` must be a list"),
        ("objects: [[house, 3]]\n", "`objects` must be a list"),
        ("objects: [no, house]\n", "in quotes"),
        ("objects: ['!']\n", "`objects` must be a list"),
        ("objects: [a: b]\n: [", "cannot be read as YAML"),
        ("", "must map names"),
    ],
)
def test_a_broken_lexicon_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "lexicon.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        Lexicon.load(tmp_path / "lexicon.yaml")


def test_a_missing_lexicon_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Lexicon.load(tmp_path / "lexicon.yaml")


def test_real_prompts_with_modifiers_behind_them_keep_everything(data_folder: Path) -> None:
    """What people write: odd characters, lists, weights, questions, other languages."""
    prompts = [
        line
        for name in ("imagereward_benchmark", "pickapic_train", "t2i_compbench_train")
        for line in (data_folder / "prompts" / f"{name}.txt").read_text("utf-8").splitlines()
    ]
    lost = [x for x in prompts[::4] if text_metrics(x, f"{x.upper()}, golden hour, 8k", LEXICON) != KEPT]
    assert lost == []
    assert len(prompts) > 5_000


def test_real_prompts_that_lose_their_last_word_lose_something(data_folder: Path) -> None:
    prompts = (data_folder / "prompts" / "t2i_compbench_train.txt").read_text("utf-8").splitlines()[:400]
    kept = [
        text_metrics(x, x.rstrip(". ").rsplit(" ", 1)[0], LEXICON)["words_kept"] for x in prompts if x.count(" ") > 3
    ]
    # The last word is a noun, as good as always ("a frog near a frog" keeps it).
    assert sum(share < 1 for share in kept) / len(kept) > 0.95
