"""The pages in a real browser: Chromium without a window, driven by playwright; skipped where either is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small `fewstep compare digits`."""
    from typer.testing import CliRunner

    from fewstep.cli.main import app

    out = tmp_path_factory.mktemp("compare")
    words = ["compare", "digits", "--nfe", "4", "--nfe", "6", "-n", "16", "--out", str(out), "--force"]
    words += ["--solvers", "ddim", "--solvers", "dpmpp-2m", "--timesteps", "log-snr", "--timesteps", "short"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return out / "report.html"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's page, of made-up figures: the layout is the demo's, without its minutes."""
    import torch

    from fewstep.report.demo import page
    from fewstep.report.page import write_report

    figures = json.loads((Path(__file__).parents[2] / "docs" / "figures.json").read_text("utf-8"))
    rows = [
        {"median": 0.1, "accuracy": 0.9, "seconds": 1.0, "asked_nfe": row["planned_nfe"]} | row
        for row in figures["rows"]
    ]
    result = figures | {
        "rows": rows,
        "parameters": 543361,
        "accelerate": {"rows": [row | {"n": 512, "frechet": None} for row in rows[:5]], "notes": figures["notes"]},
    }
    shown = [torch.rand(10, 1, 8, 8) * 2 - 1 for _ in rows]
    return write_report(tmp_path_factory.mktemp("demo"), page(result, shown))


@pytest.fixture(params=["compared", "demo"])
def report(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


class Watched:
    """A page, and all that went wrong on it."""

    def __init__(self, browser: Any, path: Path, width: int = 1200) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type != "log" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url[:80]}"))
        self.page.on("request", self._asked)
        self.page.goto(path.as_uri(), wait_until="load")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.wrong.append(f"outside: {request.url[:80]}")


def test_nothing_is_wrong_and_pictures_are_there(browser, report):
    seen = Watched(browser, report)
    assert seen.wrong == []
    sizes = seen.page.eval_on_selector_all(
        "img", "all => all.map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().width])"
    )
    assert all(done and width > 0 and height > 0 and shown > 0 for done, width, height, shown in sizes)
    if "demo" in str(report):
        assert len(sizes) > 100 and {tuple(size[1:3]) for size in sizes} == {(8, 8)}
    inside = "all => all.map(e => e.scrollWidth - e.clientWidth)"
    assert max(seen.page.eval_on_selector_all(".scroll", inside)) <= 0  # on a wide screen nothing is hidden
    drawn = seen.page.eval_on_selector_all("svg", "all => all.map(s => s.getBoundingClientRect().height)")
    assert len(drawn) >= 1 and min(drawn) > 100
    seen.page.close()


def test_tables_sort_both_ways(browser, report):
    seen = Watched(browser, report)
    tables = seen.page.query_selector_all("table.figures")
    assert len(tables) == (3 if "demo" in str(report) else 2)  # the demo folds what diverged into one of its own
    whole = max(tables, key=lambda table: len(table.query_selector_all("tbody tr")))
    heads = [head.inner_text() for head in whole.query_selector_all("th")]
    numbers, names = heads.index("error"), heads.index("sampler")

    def column(index: int) -> list[str]:
        return [row.query_selector_all("td")[index].inner_text() for row in whole.query_selector_all("tbody tr")]

    def values(index: int) -> list[float]:
        cells = whole.query_selector_all(f"tbody tr td:nth-child({index + 1})")
        return [float(cell.get_attribute("data-number") or "nan") for cell in cells]

    before, count = values(numbers), len(column(names))
    button = whole.query_selector_all("th button")[numbers]
    button.click()
    up = [value for value in values(numbers) if value == value]
    assert up == sorted(up) and up != [value for value in before if value == value] and len(up) >= 5
    button.click()
    found = values(numbers)
    down = [value for value in found if value == value]
    assert down == up[::-1] and found[: len(down)] == down  # what is no number stays last
    assert whole.query_selector_all("th")[numbers].get_attribute("aria-sort") == "descending"
    whole.query_selector_all("th button")[names].click()
    assert whole.query_selector_all("th")[numbers].get_attribute("aria-sort") is None
    assert [name.casefold() for name in column(names)] == sorted(name.casefold() for name in column(names))
    assert len(column(names)) == count and seen.wrong == []
    seen.page.close()


def test_sorting_by_keyboard(browser, compared):
    seen = Watched(browser, compared)
    seen.page.locator("table.figures th button").first.focus()
    seen.page.keyboard.press("Enter")
    assert seen.page.locator("table.figures th").first.get_attribute("aria-sort") == "ascending"
    seen.page.close()


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_overflows(browser, report, width):
    seen = Watched(browser, report, width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    # Wide tables and plots scroll within themselves; nothing else may reach over the edge.
    over = seen.page.evaluate(
        """width => [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll") && !e.closest(".unseen")
        && e.getBoundingClientRect().right > width + 0.5).map(e => e.tagName + "." + e.className)""".replace("\n", " "),
        width,
    )
    assert over == []
    text = seen.page.eval_on_selector_all(
        "p, td, th, dd", "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(text) >= 12
    seen.page.close()


def test_prints_with_all_rows(browser, report, tmp_path):
    seen = Watched(browser, report)
    rows = seen.page.locator("table.figures tbody tr").count()
    seen.page.emulate_media(media="print")
    seen.page.set_viewport_size({"width": 718, "height": 1000})  # a page of A4 between margins of 1 cm
    widths = seen.page.evaluate(
        """() => [...document.querySelectorAll("table.figures")].map(
        t => [t.getBoundingClientRect().right, t.closest("section").getBoundingClientRect().right])""".replace(
            "\n", " "
        )
    )
    assert all(right <= edge + 0.5 for right, edge in widths)  # what would scroll is cut off on paper
    shown = seen.page.evaluate(
        "[...document.querySelectorAll('.figures tbody tr')].filter(r => r.getBoundingClientRect().height > 0).length"
    )
    assert shown == rows
    path = tmp_path / "report.pdf"
    seen.page.pdf(path=str(path), format="A4", margin={side: "1cm" for side in ("top", "bottom", "left", "right")})
    assert path.read_bytes()[:5] == b"%PDF-" and path.stat().st_size > 20_000
    if (reader := shutil.which("pdftotext")) is not None:
        import subprocess

        text = subprocess.run([reader, "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
        names = seen.page.eval_on_selector_all(
            "table.figures tbody td:first-child", "all => all.map(e => e.firstChild.textContent)"
        )
        assert all(text.count(name) >= 1 for name in set(names))
    seen.page.close()
