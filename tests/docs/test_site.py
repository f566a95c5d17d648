"""The site builds without a warning and reads without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
for needed in ("mkdocs", "mkdocstrings", "latex2mathml"):
    pytest.importorskip(needed)
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", out]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("width", [360, 1300])
def test_pages_in_a_browser(site, width):
    wrong: list[str] = []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url),
        )
        for name in (
            "index.html",
            "rooms/guidance.html",
            "chapters/identities.html",
            "chapters/editing.html",
            "api/core.html",
        ):
            page.goto((site / name).as_uri(), wait_until="load")
            assert wrong == [], name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            sizes = page.eval_on_selector_all(".md-content img", "all => all.map(i => [i.complete, i.naturalWidth])")
            assert all(done and size > 0 for done, size in sizes), name
            if name.startswith(("rooms", "chapters/identities")):
                heights = page.eval_on_selector_all("math", "all => all.map(m => m.getBoundingClientRect().height)")
                assert len(heights) > 10 and min(heights) > 5, name
                text = page.inner_text(".md-content")
                assert "\\frac" not in text and "\\(" not in text and "$" not in text, name
        assert len(page.query_selector_all("h2")) > 10  # the reference names its files
        browser.close()
