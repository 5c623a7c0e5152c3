"""The report and the page of a run in a browser: filter, search, order, keyboard, phone, dark, pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from promptist.evaluation.report import build_report, read_evaluation, write_report
from promptist.evaluation.table import Table
from tests.helpers_browser import PHONE
from tests.helpers_report import EVIL, make_evaluation, write_runs, write_samples

pytestmark = pytest.mark.browser

PROMPTS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("report")
    make_evaluation(found / "e", prompts=PROMPTS)
    build_report(found / "e", write_runs(found))
    return found / "e"


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return read_evaluation(folder).table


def opened(page: Any, folder: Path) -> Any:
    page.goto((folder / "report.html").as_uri())
    page.wait_for_function("performance.getEntriesByName('complete').length")
    return page


def titles(page: Any) -> list[str]:
    """The prompts of the cards that are there."""
    return [title.strip() for title in page.locator("#cards h3").all_inner_texts()]


def count(page: Any) -> str:
    return str(page.inner_text("#count"))


def load_all(page: Any) -> None:
    """Make every card and wait for every picture of the page."""
    page.evaluate("while (!document.getElementById('more').hidden) document.getElementById('more').click()")
    page.evaluate("for (const i of document.images) i.loading = 'eager'")
    page.wait_for_function("[...document.images].every((i) => i.complete)")


def test_all_pictures_load_and_have_alt_texts(page: Any, folder: Path) -> None:
    opened(page, folder)
    load_all(page)
    assert len(titles(page)) == PROMPTS
    found = page.evaluate("[...document.images].map((i) => [i.naturalWidth, i.alt, i.src.slice(0, 5)])")
    assert len(found) > 4 * PROMPTS * 0.8
    assert all(width > 0 and alt.strip() for width, alt, _ in found)
    assert {source for _, _, source in found} == {"data:"}  # at first nothing is loaded from beside the page


def test_filter_by_set(page: Any, folder: Path, table: Table) -> None:
    opened(page, folder)
    assert count(page) == f"{PROMPTS} of {PROMPTS} prompts"
    page.select_option("#set", label="out")
    load_all(page)
    assert count(page) == f"{PROMPTS // 2} of {PROMPTS} prompts"
    assert titles(page) == [x for x, name in table.set_of.items() if name == "out"]
    assert set(page.locator("#cards .tag").all_inner_texts()) == {"out"}
    assert page.locator("#cards .none").count() == PROMPTS // 2  # no human-engineered prompt there
    page.select_option("#set", label="all")
    assert count(page).startswith(str(PROMPTS))


def test_search_in_prompts_and_rewrites(page: Any, folder: Path) -> None:
    opened(page, folder)
    page.fill("#query", "BOAT 17")
    assert titles(page) == ["boat 17"] and count(page).startswith("1 of")
    assert page.locator("#cards mark").first.inner_text() in ("boat", "17")
    page.fill("#query", "script alert")  # the prompt with markup in it is text
    assert titles(page) == [EVIL]
    page.fill("#query", "human style")  # stands in the rewrites alone
    assert count(page).startswith(f"{PROMPTS // 2} of")
    page.select_option("#set", label="out")
    assert count(page).startswith("0 of") and titles(page) == []
    page.fill("#query", "")
    assert count(page).startswith(f"{PROMPTS // 2} of")


def test_order_by_change_of_the_reward(page: Any, folder: Path, table: Table) -> None:
    opened(page, folder)
    user, ppo = table.scores("reward", "user"), table.scores("reward", "ppo")
    change = dict(zip(ppo.prompts, ppo.values.mean(1) - user.of(ppo.prompts).mean(1), strict=True))
    for label, sign in (("largest gain of PPO", -1), ("largest loss of PPO", 1)):
        page.select_option("#order", label=label)
        load_all(page)
        shown = [change[x] for x in titles(page)]
        assert len(shown) == PROMPTS
        assert all(sign * (a - b) <= 2e-3 for a, b in pairwise(shown))  # data has three decimals
    page.select_option("#order", label="largest gain of Human-engineered")
    assert count(page).startswith(f"{PROMPTS // 2} of")  # only those that have it


def test_each_picture_has_both_prompts_and_its_scores(page: Any, folder: Path, table: Table) -> None:
    """Also at another noise and of another training, whose pictures come from the files beside the page."""
    opened(page, folder)
    page.fill("#query", "boat 12")
    page.select_option("#seed", "1")
    page.select_option("#replica", "1")
    page.wait_for_function("[...document.querySelectorAll('#cards img')].every((i) => i.complete && i.naturalWidth)")
    article = page.locator("#cards article")
    assert article.count() == 1 and article.locator("h3").inner_text() == "boat 12"
    ppo = article.locator(".method", has=page.locator("h4", has_text="PPO"))
    assert ppo.locator("p").inner_text() == "boat 12, ppo style 1"
    assert ppo.locator("em").all_inner_texts() == ["ppo", "style", "1"]
    caption = " ".join(ppo.locator("figcaption").inner_text().replace("\u2212", "-").split())
    for metric, name, digits in (
        ("aesthetic", "aesthetic", 2),
        ("cosine", "cosine", 3),
        ("rival.reward", "rival reward", 2),
    ):
        value = table.value(metric, "ppo", "boat 12", 1, 1)
        assert f"{name} {'+' if name.endswith('reward') and value > 0 else ''}{round(value, 3):.{digits}f}" in caption
    image = ppo.locator("img")
    path = next(p.path for p in table.pictures if (p.prompt, p.method, p.replica, p.seed) == ("boat 12", "ppo", 1, 1))
    assert image.get_attribute("src") == path == ppo.locator("a").get_attribute("href")
    assert "boat 12, ppo style 1" in image.get_attribute("alt") and "noise 1" in image.get_attribute("alt")


def test_cards_come_as_the_reader_comes(page: Any, folder: Path) -> None:
    opened(page, folder)
    assert len(titles(page)) == 24
    page.locator("#more").scroll_into_view_if_needed()
    page.wait_for_function(f"document.querySelectorAll('#cards article').length === {PROMPTS}")
    assert page.locator("#more").is_hidden()


def test_keyboard_alone(page: Any, folder: Path) -> None:
    opened(page, folder)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("boat 2")
    assert count(page).startswith("13 of")  # 2, 12, 20..29, 32
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "set"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#set") == "1" and count(page).startswith("5 of")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    assert page.input_value("#query") == "" and count(page).startswith(f"{PROMPTS // 2} of")
    page.evaluate("document.activeElement.blur()")
    for key, expected in (("j", "boat 1"), ("j", "boat 3"), ("k", "boat 1")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.querySelector('h3').textContent") == expected
    page.keyboard.press("Tab")  # into the card: its first picture
    assert page.evaluate("document.activeElement.tagName") == "A"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline not in ("none", "")


def names_and_labels(page: Any) -> list[str]:
    """Controls without a name for a screen reader."""
    found: list[str] = page.evaluate(
        """[...document.querySelectorAll('input, select, button, a, summary, [tabindex="0"]')]
           .filter((e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label')
                            || e.querySelector('img[alt]:not([alt=""])'))).map((e) => e.outerHTML.slice(0, 200))"""
    )
    return found


def test_names_of_controls_and_headings_in_order(page: Any, folder: Path) -> None:
    opened(page, folder)
    assert names_and_labels(page) == []
    assert page.get_by_label("Search prompts and rewrites").count() == 1
    assert page.get_by_role("status").inner_text() == f"{PROMPTS} of {PROMPTS} prompts"
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.get_attribute("html", "lang") == "en"


def width_to_spare(page: Any) -> int:
    return int(page.evaluate("window.innerWidth - document.documentElement.scrollWidth"))


def test_phone_without_sideways_scrolling(phone: Any, folder: Path) -> None:
    opened(phone, folder)
    load_all(phone)
    assert phone.evaluate("window.innerWidth") == PHONE["viewport"]["width"]
    assert width_to_spare(phone) >= 0
    beyond = phone.evaluate(
        """[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg')
           && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert beyond == []
    widths = phone.evaluate("[...document.querySelectorAll('#cards img')].map((i) => i.getBoundingClientRect().width)")
    assert min(widths) > 90  # large enough to see
    small = phone.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter((e) => e.offsetParent"
        " && e.getBoundingClientRect().height < 32).map((e) => e.id)"
    )
    assert small == []


def luminance(colour: str) -> float:
    """WCAG 2: relative luminance of `rgb(r, g, b)`."""
    parts = [float(v) / 255 for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_have_contrast(new_page: Callable[..., Any], folder: Path, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for text on what is behind it."""
    page = opened(new_page(color_scheme=scheme), folder)
    pairs = page.evaluate(
        """['body', '.soft', '.summary li', 'nav a', '.case h3', '.case em', 'figcaption span', 'td small', 'input',
            'select', '.tag', 'kbd'].map((s) => {
             const e = document.querySelector(s); let b = e;
             while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
             return [s, getComputedStyle(e).color, getComputedStyle(b).backgroundColor];
           })"""
    )
    behind = luminance(next(back for name, _, back in pairs if name == "body"))
    assert behind < 0.05 if scheme == "dark" else behind > 0.8
    for name, ink, back in pairs:
        low, high = sorted((luminance(ink), luminance(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ink, back)


def test_without_script_the_page_says_so_and_keeps_the_rest(new_page: Callable[..., Any], folder: Path) -> None:
    page = new_page(java_script_enabled=False)
    page.goto((folder / "report.html").as_uri())
    assert "need JavaScript" in page.inner_text("noscript")
    assert page.locator("#search").is_hidden() and page.locator("#more").is_hidden()
    assert page.locator("#pictures img").count() == 3 * 4 + 3 * 3  # no human-engineered prompt on the second set
    assert page.locator("#extremes img").count() > 0 and page.locator("table").count() >= 2


def test_one_set_one_noise_one_training_have_no_choice(page: Any, tmp_path: Path) -> None:
    make_evaluation(tmp_path / "e", prompts=3, replicas=1, noises=1, checkpoints=())
    build_report(tmp_path / "e", {})
    opened(page, tmp_path / "e")
    assert page.locator("label:has(#seed)").is_hidden() and page.locator("label:has(#replica)").is_hidden()
    assert page.locator("label:has(#set)").is_visible() and len(titles(page)) == 3


def test_page_of_a_run(page: Any, tmp_path: Path) -> None:
    run = Path(write_runs(tmp_path)["ppo"][0])
    write_samples(run, 10)
    lines = (run / "metrics.jsonl").read_text().replace('"distinct_suffix": 0.5', '"distinct_suffix": 0.04')
    (run / "metrics.jsonl").write_text(lines)
    page.goto(write_report(run).as_uri())
    assert page.locator("#alarms h2").inner_text() == "1 alarm"
    assert "4 % are different texts (alarm below 5 %)" in page.inner_text("#alarms")
    watched = page.locator("#alarms details ul")
    assert watched.is_hidden()
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert watched.is_visible()
    assert names_and_labels(page) == [] and width_to_spare(page) >= 0
    assert page.evaluate("[...document.images].every((i) => i.naturalWidth && i.alt)")


def test_page_of_a_run_on_a_phone(phone: Any, tmp_path: Path) -> None:
    run = Path(write_runs(tmp_path)["ppo"][0])
    write_samples(run, 10)
    phone.goto(write_report(run).as_uri())
    assert width_to_spare(phone) >= 0 and phone.locator("svg").count() == 7


def test_a_report_moved_without_its_pictures_still_opens(page: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "report.html", tmp_path / "report.html")
    opened(page, tmp_path)
    load_all(page)
    assert len(titles(page)) == PROMPTS
