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
def watched(browser, request) -> Iterator[Callable[..., Any]]:
    """Makes pages of servers on this machine; afterwards, that nothing else was asked and that no script failed.

    What they looked like at the end is kept in runs/screenshots, to be looked at.
    """
    asked: list[str] = []
    failed: list[str] = []
    pages: list[Any] = []

    def new_page(**settings: Any) -> Any:
        page = browser.new_page(**settings)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        pages.append(page)
        return page

    yield new_page
    for number, page in enumerate(pages):
        folder = Path(__file__).parents[2] / "runs" / "screenshots"
        page.screenshot(path=folder / f"{request.node.name}{number or ''}.png")
        page.close()
    ours = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "about:")
    assert [url for url in asked if not url.startswith(ours)] == []
    assert failed == []


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
