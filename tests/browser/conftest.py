"""A real browser: Debian's Chromium, driven through Playwright; skipped where either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from advisor.records import Recommendation
from advisor.report import render_html

_PATIENCE = 300_000  # milliseconds: a page of 0.9 s of work took 45 s beside two studies on two cores
REPORTS = Path(__file__).parents[2] / "reports"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'peft-advisor[browser]'")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on the PATH: apt install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session", params=["demo-new-classes", "resnet20-cifar10-noise"])
def saved(request: pytest.FixtureRequest) -> Recommendation:
    """Answers of real runs."""
    return Recommendation.load(REPORTS / f"{request.param}.json")


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a recommendation's page; what it says to the console or asks of the network is a failure."""
    said: list[str] = []
    contexts = []

    def open_page(recommendation: Recommendation, **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_html(recommendation), encoding="utf-8")
        context = browser.new_context(**options)
        context.set_default_timeout(_PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda asked: asked.url == path.as_uri() or said.append(asked.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
