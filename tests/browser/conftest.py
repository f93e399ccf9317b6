"""A real Chromium, driven by playwright; its tests are skipped, and say so, where none is installed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("BROWSER TESTS SKIPPED: no chromium found; apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="BROWSER TESTS SKIPPED: playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[[Path], Any]]:
    """Opens an HTML file; afterwards, that nothing was asked of another host and no script failed."""
    page = browser.new_page(viewport={"width": 1000, "height": 640})
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)

    def go(path: Path) -> Any:
        page.goto(path.as_uri())
        page.wait_for_selector(".ucore-panel")
        return page

    yield go
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert failed == []
    page.close()
