"""The rating page as a rater meets it: a study by keyboard, an interruption, the saved file, a phone, no storage."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptist.cli import main
from promptist.humaneval.study import Study
from tests.helpers_humaneval import prefer, write_evaluation

pytestmark = pytest.mark.browser

KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "equal": "ArrowDown"}
DIGITS = {"left": "1", "right": "2", "equal": "3"}
NO_STORAGE = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("The operation is insecure.", "SecurityError"); } });"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 6 prompts, ppo against user (one pair identical) and human, two raters, two repeats."""
    folder = tmp_path_factory.mktemp("humaneval")
    write_evaluation(folder / "eval", same=5)
    assert main([
        "humaneval", "make", str(folder / "eval"), "--pairs", "ppo:user", "ppo:human", "--prompts", "6", "--raters",
        "2", "--repeat", "2", "--out", str(folder / "out"),
    ]) == 0  # fmt: skip
    return folder / "out"


def url(out: Path, rater: int | None = None) -> str:
    return (out / "rate/index.html").as_uri() + ("" if rater is None else f"?rater={rater}")


def wait(page: Any, place: int, of: int) -> None:
    """Until showing `place` (from 1) is there and can be answered."""
    page.locator("#where", has_text=f"Pair {place} of {of}").wait_for()
    page.locator("[data-choice=left]:enabled").wait_for()


def liking(study: Study, rater: int, place: int) -> str:
    """The choice of a rater who likes what ppo painted, and sees no difference to human."""
    showing = study.orders[rater - 1][place]
    pair = next(pair for pair in study.pairs if pair.id == showing.pair)
    return prefer(pair, showing, "ppo" if pair.second == "user" else None)


def save(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click(button)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_study_by_keyboard(page: Any, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.read(out)
    count = len(study.orders[0])
    files = []
    for rater in (1, 2):
        page.goto(url(out, rater))
        page.focus("#go")
        page.keyboard.press("Enter")
        for place in range(count):
            wait(page, place + 1, count)
            showing = study.orders[rater - 1][place]
            assert page.get_attribute("#a", "src") == f"pictures/{showing.left}.png"
            assert page.get_attribute("#b", "src") == f"pictures/{showing.right}.png"
            assert page.inner_text("#prompt") == next(p.prompt for p in study.pairs if p.id == showing.pair)
            keys = KEYS if place % 2 else DIGITS
            if place == 3:  # a slip, taken back
                page.keyboard.press(keys[{"left": "right", "right": "left", "equal": "left"}[liking(study, rater, 3)]])
                wait(page, 5, count)
                page.keyboard.press("Backspace")
                wait(page, 4, count)
            page.keyboard.press(keys[liking(study, rater, place)])
            if place == 5:
                wait(page, 7, count)
                page.reload()
                assert f"This browser has 6 of {count} answers of rater {rater}." in page.inner_text("#found")
                assert page.inner_text("#go") == "Go on"
                page.focus("#go")
                page.keyboard.press("Enter")
        page.locator("#done h1").wait_for()
        files.append(save(page, "#save", tmp_path))
        assert f"{count} of {count} answers" in page.inner_text("#saved")
        assert json.loads(page.input_value("#text"))["answers"] == json.loads(files[-1].read_text())["answers"]

    capsys.readouterr()
    assert main(["humaneval", "score", str(out), *map(str, files)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = json.loads((out / "scores/scores.json").read_text())
    user, human = (
        next(p for p in found["preferences"] if p["second"] == m and p["set"] == "all") for m in ("user", "human")
    )
    same = sum(pair.identical for pair in study.pairs if pair.second == "user")
    assert same > 0
    assert user["shares"] == pytest.approx([(6 - same) / 6, same / 6, 0])
    assert (user["won"], user["tied"], user["lost"]) == (6 - same, same, 0)
    assert human["shares"] == [0, 1, 0]
    assert [(h["repeats"], h["same"]) for h in found["habits"]] == [(4, 4), (2, 2), (2, 2)]
    assert found["answered"] == found["asked"] == 2 * count
    assert "PPO against User input: PPO was preferred in" in said
    assert all(float(line.split(",")[-1]) < 60 for line in (out / "scores/ratings.csv").read_text().splitlines()[1:])


def test_mouse_back_and_forward(page: Any, out: Path) -> None:
    study = Study.read(out)
    count = len(study.orders[0])
    page.goto(url(out))
    page.select_option("#rater", "1")
    page.click("#go")
    wait(page, 1, count)
    assert page.is_disabled("#back")
    assert page.is_hidden("#forward")
    page.click("[data-choice=equal]")
    wait(page, 2, count)
    page.click("#back")
    wait(page, 1, count)
    assert page.get_attribute("[data-choice=equal]", "aria-pressed") == "true"
    assert page.get_attribute("[data-choice=left]", "aria-pressed") == "false"
    assert "Your choice was: Equally good." in page.inner_text("#said")
    page.click("#forward")
    wait(page, 2, count)
    # Without a choice the keys of a browser's own shortcuts do nothing, nor does a key held down.
    page.keyboard.press("Control+1")
    page.keyboard.press("Alt+ArrowRight")
    assert page.inner_text("#where") == f"Pair 2 of {count}"


def test_a_file_goes_on_without_storage(new_page: Any, out: Path, tmp_path: Path) -> None:
    """Where nothing can be kept in the browser, the page says so, and the saved file goes on in another one."""
    count = len(Study.read(out).orders[1])
    page = new_page()
    page.add_init_script(NO_STORAGE)
    page.goto(url(out, 2))
    assert "does not let the page keep your choices" in page.inner_text("#notice")
    page.click("#go")
    for place in range(4):
        wait(page, place + 1, count)
        page.keyboard.press("1")
    wait(page, 5, count)
    part = save(page, "#save-so-far", tmp_path)
    assert part.name == f"unfinished-ratings-{Study.read(out).hash[:8]}-rater-2.json"
    assert page.inner_text("#said") == f"Saved as {part.name}: 4 of {count} answers."

    other = new_page()
    other.add_init_script(NO_STORAGE)
    other.goto(url(out))
    other.set_input_files("#file", part)
    for place in range(4, count):
        wait(other, place + 1, count)
        other.keyboard.press("3")
    other.locator("#done h1").wait_for()
    whole = json.loads(save(other, "#save", tmp_path).read_text())
    assert [answer["choice"] for answer in whole["answers"]] == ["left"] * 4 + ["equal"] * (count - 4)
    assert whole["rater"] == 2
    assert main(["humaneval", "score", str(out), str(part)]) == 64  # unfinished


def test_leaving_with_unsaved_answers_is_asked_about(new_page: Any, out: Path) -> None:
    page = new_page()
    page.add_init_script(NO_STORAGE)
    page.goto(url(out, 1))
    page.click("#go")
    wait(page, 1, len(Study.read(out).orders[0]))
    page.click("[data-choice=left]")
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.close(run_before_unload=True)
    page.wait_for_event("close")
    assert asked == ["beforeunload"]


def test_wrong_files_and_raters(page: Any, out: Path, tmp_path: Path) -> None:
    page.goto(url(out, 7))
    assert "There is no rater 7: choose a number of 1 to 2." in page.inner_text("#notice")
    page.select_option("#rater", "2")
    assert page.is_hidden("#notice")
    page.click("#elsewhere summary")
    study = Study.read(out)
    good = {
        "format": "promptist-humaneval-ratings", "version": 1, "study": study.hash, "rater": 1, "started": "",
        "saved": "", "answers": [None] * len(study.orders[0]),
    }  # fmt: skip
    other = [{"pair": "?", "left": "?", "right": "?", "choice": "left", "ms": 1}]
    for text, said in [
        ("no json", "This is not a file that this page saved."),
        ("null", "This is not a file that this page saved."),
        (json.dumps({**good, "study": "0123"}), "This file belongs to another study (0123)."),
        (json.dumps({**good, "rater": 9}), "This file was changed or damaged."),
        (json.dumps({**good, "answers": other + good["answers"][1:]}), "This file was changed or damaged."),
    ]:
        (tmp_path / "file.json").write_text(text)
        page.set_input_files("#file", tmp_path / "file.json")
        page.locator("#notice", has_text=said).wait_for()
        page.set_input_files("#file", [])
    assert page.is_visible("#start")


def test_missing_picture_is_said(browser: Any, out: Path, tmp_path: Path) -> None:
    """A page copied without its pictures says what is missing. The browser complains, too."""
    (tmp_path / "index.html").write_text((out / "rate/index.html").read_text())
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri() + "?rater=1")
    page.click("#go")
    page.locator("#notice", has_text="The folder “pictures” must be beside this page").wait_for()
    page.keyboard.press("1")
    assert page.inner_text("#where").startswith("Pair 1 ")
    page.close()


def test_phone(phone: Any, out: Path) -> None:
    """Everything of a pair fits on the screen, nothing is wider than it; targets are large enough for a thumb."""
    count = len(Study.read(out).orders[0])
    phone.goto(url(out, 1))
    phone.tap("#go")
    for place, choice in enumerate(("left", "equal", "right")):
        wait(phone, place + 1, count)
        height, width = phone.evaluate("[innerHeight, innerWidth]")
        for selector in ("#prompt", "#a", "#b", "[data-choice=left]", "[data-choice=equal]", "[data-choice=right]"):
            box = phone.locator(selector).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width, selector
            assert box["y"] >= 0 and box["y"] + box["height"] <= height, selector
        assert phone.locator("#a").bounding_box()["width"] >= 200
        assert min(phone.locator("[data-choice=left]").bounding_box()[side] for side in ("width", "height")) >= 44
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
        phone.tap(f"[data-choice={choice}]")
    wait(phone, 4, count)


def test_names_for_screen_readers(page: Any, out: Path) -> None:
    """Every control has a name, and pictures are called A and B, nothing else."""
    page.goto(url(out, 1))
    assert page.get_by_label("Your rater number").count() == 1
    page.click("#go")
    wait(page, 1, len(Study.read(out).orders[0]))
    for name in ("A is better", "Equally good", "B is better", "Back", "Save so far"):
        assert page.get_by_role("button", name=name).count() == 1
    assert [page.get_attribute(f"#{i}", "alt") for i in ("a", "b")] == ["Picture A", "Picture B"]
    assert page.get_by_role("progressbar", name="Pairs answered").count() == 1
    assert page.get_by_role("group", name="Which is better, considering match and looks?").count() == 1


@pytest.fixture
def server(out: Path) -> Iterator[str]:
    """Any static server will do."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(out / "rate"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_from_a_server(browser: Any, out: Path, server: str) -> None:
    """The page asks for itself and pictures, and for nothing else."""
    page = browser.new_page()
    asked, troubles = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.goto(f"{server}/index.html?rater=1")
    page.click("#go")
    wait(page, 1, len(Study.read(out).orders[0]))
    page.keyboard.press("2")
    wait(page, 2, len(Study.read(out).orders[0]))
    page.close()
    assert not troubles
    assert {address.split("?")[0].rsplit("/", 1)[0] for address in asked if address != "data:,"} == {
        server, f"{server}/pictures",
    }  # fmt: skip
