"""What the fixtures must notice: each fault of a page, and nothing on a page without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers_browser import watch

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>undefinedThing()</script>", "undefinedThing is not defined"),
        ("<img src='gone.png' alt=''>", "ERR_FILE_NOT_FOUND"),
        ("<img src='https://example.invalid/a.png' alt=''>", "asked the network for https://example.invalid/a.png"),
    ],
)
def test_faults_are_seen(browser: Any, tmp_path: Path, fault: str, said: str) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><title>t</title>{fault}")
    page = browser.new_page()
    troubles = watch(page)
    page.goto((tmp_path / "page.html").as_uri())
    page.close()
    assert any(said in trouble for trouble in troubles), troubles


def test_a_page_without_fault(page: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<!doctype html><link rel=icon href='data:,'><title>t</title><p>fine")
    page.goto((tmp_path / "page.html").as_uri())
    assert page.inner_text("p") == "fine"
