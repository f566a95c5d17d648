"""The pictures of the studio in docs/images: `python tools/studio.py`, or one of them by its name.

Needs gradio, playwright and chromium.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.core.files import write
from fewstep.hub.models import load
from fewstep.serving.models import Models
from fewstep.serving.run import address, bound, server
from fewstep.serving.service import Service
from fewstep.serving.studio import create_studio

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
WIDTH = 1200
PATIENCE = 900_000  # milliseconds


def field(page: Any, name: str, text: str) -> None:
    page.locator(f"#{name} :is(input, textarea)").first.fill(text)


def drawn(page: Any) -> None:
    """Pictures of a caption, and how the first of them formed."""
    field(page, "caption", "a large red circle above a small blue square")
    field(page, "guidance", "2")
    for _ in range(2):  # the first pictures of a process take longer
        page.click("#draw")
        page.wait_for_selector("#drawn a[download]")
        page.wait_for_timeout(500)


def accelerated(page: Any) -> None:
    """An acceleration that is done."""
    page.get_by_role("tab", name="Accelerate").click()
    page.click("#accelerate")
    page.wait_for_selector("#verdict li")


def shot(page: Any, path: Path) -> None:
    """The page as far as it is filled, without what has the focus."""
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(500)
    height = page.evaluate("document.querySelector('.gradio-container').scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": height})
    with tempfile.TemporaryDirectory() as folder:
        page.screenshot(path=Path(folder) / "page.png")
        write(path, (Path(folder) / "page.png").read_bytes())


@contextlib.contextmanager
def studio(name: str) -> Iterator[str]:
    """The studio of a model, at an address."""
    service = Service(Models({name: name}, load))
    app, hunts = create_studio(service)
    listening, ready = bound("127.0.0.1", 0), threading.Event()
    running = server(service, app, listening, started=lambda _: ready.set())
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        ready.wait(60)
        yield address(listening)
    finally:
        hunts.close()
        running.should_exit = True
        thread.join()


def main() -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as run:
        browser = run.chromium.launch(executable_path=chromium, args=list(QUIET))
        for model, prepare, file in (("shapes", drawn, "studio"), ("digits", accelerated, "studio-accelerate")):
            if not set(sys.argv[1:]) <= {file}:
                continue
            with studio(model) as where:
                page = browser.new_page(viewport={"width": WIDTH, "height": 900})
                page.set_default_timeout(PATIENCE)
                page.goto(where, wait_until="domcontentloaded")
                page.wait_for_selector("#draw")
                prepare(page)
                shot(page, IMAGES / f"{file}.png")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
