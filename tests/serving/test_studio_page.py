"""The studio in a real browser: Chromium without a window, driven by playwright; skipped where either is missing."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving.http import encoded, live, pixels

import fewstep as fs

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
         "--disable-component-update")  # fmt: skip
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


@contextlib.contextmanager
def studio(name: str) -> Iterator[str]:
    """The studio of a model, to the bit the same whatever shares a call; its address."""
    from fewstep.hub.models import load
    from fewstep.serving.models import Models
    from fewstep.serving.service import Service
    from fewstep.serving.studio import create_studio

    service = Service(Models({name: name}, load, exact=True, max_batch=16))
    app, hunts = create_studio(service)
    with live(service, app=app) as running:
        try:
            yield running.url
        finally:
            hunts.close()


@pytest.fixture(scope="module")
def digits(few_candidates: None) -> Iterator[str]:
    from fewstep.serving import studio_accelerate

    with pytest.MonkeyPatch.context() as patch, studio("digits") as url:
        patch.setattr(studio_accelerate, "NFES", (2, 4, 8))
        yield url


@pytest.fixture(scope="module")
def shapes() -> Iterator[str]:
    with studio("shapes") as url:
        yield url


class Page:
    """A page, and all that goes wrong on it."""

    def __init__(self, browser: Any, url: str, width: int):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.page, self.url = self.context.new_page(), url
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("response", self._answered)
        self.page.on("request", self._asked)
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_selector("#draw")

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.wrong.append(f"{response.status}: {response.url}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.wrong.append(f"outside: {request.url[:80]}")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def fill(self, **fields: str) -> None:
        for name, text in fields.items():
            self.page.locator(f"#{name.replace('_', '-')} :is(input, textarea)").first.fill(text)

    def choose(self, name: str, option: str) -> None:
        """An option of a list, by clicks."""
        self.page.locator(f"#{name} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def line(self, name: str, pattern: str) -> str:
        """The line of state, once it matches."""
        self.page.wait_for_function(
            "([name, pattern]) => new RegExp(pattern).test(document.getElementById(name)?.innerText ?? '')",
            arg=[name, pattern],
        )
        return self.page.inner_text(f"#{name}").strip()

    def download(self, selector: str) -> tuple[str, bytes]:
        with self.page.expect_download() as coming:
            self.page.locator(selector).first.click()
        return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()

    def watch(self, name: str) -> Callable[[], list[str]]:
        """All that an element shows from now on."""
        self.page.evaluate(
            """name => { window.seen = []; new MutationObserver(() => {
            window.seen.push(document.getElementById(name).innerHTML) }).observe(document.getElementById(name),
            {childList: true, subtree: true, characterData: true}) }""",
            name,
        )
        return lambda: self.page.evaluate("window.seen")

    def over(self, width: int) -> list[str]:
        """What reaches over the edge, besides what scrolls within itself."""
        return self.page.evaluate(
            """width => [...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
            && !e.closest(".fs-way, .fs-plot, .wrap.center") && e.getBoundingClientRect().right > width + 0.5)
            .map(e => e.tagName + "#" + e.id + "." + (e.className.baseVal ?? e.className))""",
            width,
        )


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Page]]:
    """Opens pages, and finds nothing wrong with them at the end."""
    pages: list[Page] = []

    def open_page(url: str, width: int = 1200) -> Page:
        pages.append(Page(browser, url, width))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
        assert page.wrong == []


def facts(png: bytes) -> dict[str, Any]:
    return json.loads(Image.open(io.BytesIO(png)).text["fewstep"])


def again(png: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture's own command makes the picture."""
    from fewstep.cli.main import run

    monkeypatch.chdir(folder)
    about = facts(png)
    assert run(shlex.split(about["command"])[1:]) == 0
    with Image.open(folder / "pictures" / f"{about['index']:05d}.png") as made:
        far = np.abs(pixels(made).astype(int) - pixels(Image.open(io.BytesIO(png))).astype(int))
    assert far.max() <= 1  # in a batch of another size a pixel may be rounded otherwise


def test_draw_by_clicks(visit, digits, tmp_path, monkeypatch):
    seen = visit(digits)
    assert seen.page.url == f"{digits}/studio/"
    seen.choose("label", "3")
    seen.choose("solver", "ddim")
    seen.choose("timesteps", "karras")
    seen.fill(seeds="5", n="4", steps="40", guidance="2")
    on_the_way, formed = seen.watch("draw-said"), seen.page.locator("#drawn .fs-way li")
    seen.page.click("#draw")
    said = seen.line("draw-said", "^4 pictures")
    assert re.fullmatch(r"4 pictures · 40 evaluations each of ddim · \d+\.\d\d s", said)
    steps = [int(found[1]) for text in on_the_way() if (found := re.search(r"evaluation (\d+) of 40 · t = ", text))]
    assert len(set(steps)) >= 3 and steps == sorted(steps)
    assert (
        formed.count() == 10 and "t = " in formed.first.inner_text() and re.search(r"\d m?s$", formed.last.inner_text())
    )
    sizes = seen.page.eval_on_selector_all(
        "#drawn .fs-pictures img",
        "all => all.map(i => [i.naturalWidth, i.width >= 80, getComputedStyle(i).imageRendering])",
    )
    assert sizes == [[8, True, "pixelated"]] * 4
    name, png = seen.download("#drawn a[download]")
    assert name == "digits-5-0.png" and Image.open(io.BytesIO(png)).size == (8, 8)
    about = facts(png)
    assert (about["label"], about["guidance"], about["nfe"], about["timesteps"]) == (3, 2.0, 40, "karras")
    assert about["command"] in seen.page.inner_text("#drawn")
    again(png, tmp_path, monkeypatch)


def test_a_caption_is_typed(visit, shapes, tmp_path, monkeypatch):
    seen = visit(shapes)
    assert "triangle" in seen.page.inner_text("#caption")
    seen.fill(caption="a large red circle", guidance="2", steps="6", n="2", seeds="3 11")
    seen.page.click("#draw")
    seen.line("draw-said", "^2 pictures · 6 evaluations")
    name, png = seen.download("#drawn a[download]:nth-of-type(1)")
    assert name == "shapes-3-0.png" and facts(png)["prompt"] == "a large red circle"
    again(png, tmp_path, monkeypatch)


def test_by_keyboard_alone(visit, shapes):
    seen = visit(shapes)
    keys = seen.page.keyboard

    def focused() -> str:
        return seen.page.evaluate(
            "document.activeElement.closest('[id]:not(.svelte-nothing)')?.id + ' ' + document.activeElement.tagName"
        )

    def tab_to(name: str) -> None:
        for _ in range(60):
            if seen.page.evaluate("name => document.activeElement.closest('#' + name) !== null", name):
                return
            keys.press("Tab")
        raise AssertionError(f"{name} is not reached by Tab: {focused()}")

    tab_to("caption")
    keys.type("a small blue square")
    tab_to("steps")
    keys.press("Control+a")
    keys.type("3")
    tab_to("draw")
    keys.press("Enter")
    seen.line("draw-said", "^8 pictures · 3 evaluations")
    # The first picture is the next that can be reached, and is a link.
    tab_to("drawn")
    assert seen.page.evaluate("document.activeElement.hasAttribute('download')")
    # Another tab of the page, and a board that is painted on.
    seen.page.get_by_role("tab", name="Draw").focus()
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    if seen.page.get_by_role("tab", name="Inpaint").get_attribute("aria-selected") != "true":
        for _ in range(3):
            keys.press("Tab")
            if seen.page.evaluate("document.activeElement.innerText") == "Inpaint":
                break
        keys.press("Enter")
    assert seen.page.get_by_role("tab", name="Inpaint").get_attribute("aria-selected") == "true"
    tab_to("take-drawn")
    keys.press("Enter")
    seen.page.wait_for_selector(".fs-board canvas")
    tab_to("board")
    assert seen.page.evaluate("document.activeElement.tagName") == "CANVAS"
    for key in ("ArrowUp", "ArrowLeft", "Space"):
        keys.press(key)
    marked = Image.open(io.BytesIO(base64.b64decode(seen.page.evaluate("window.fewstepMarked()").split(",")[1])))
    alpha = np.asarray(marked.convert("RGBA"))[..., 3]
    assert marked.size == (32, 32) and (alpha > 0).sum() == 16 and alpha[15, 15] == 255  # a brush of 4x4
    tab_to("inpaint")
    keys.press("Enter")
    seen.line("inpaint-said", "^8 pictures")


def test_compare_by_clicks(visit, digits):
    seen = visit(digits)
    seen.tab("Compare")
    seen.fill(seeds="5")
    seen.choose("solver-A", "dpmpp-2m")
    seen.fill(steps_A="5", steps_B="10")
    seen.page.click("#compare")
    seen.line("compare-said", "8 pictures of each")
    rows = seen.page.locator("#compared .fs-row")
    assert rows.locator("h3").all_inner_texts() == ["A: dpmpp-2m", "B: ddim", "reference (vab-3)"]
    assert [rows.nth(k).locator("img").count() for k in range(3)] == [8, 8, 8]
    figures = rows.locator(".fs-figures").all_inner_texts()
    model = fs.load("digits")
    x, y, there = (
        fs.sample(model, 16, seed=5, plan=plan)[:8].double().flatten(1)
        for plan in (
            fs.plan(model.process, "dpmpp-2m", steps=5),
            fs.plan(model.process, "ddim", steps=10),
            fs.plan(model.process, "vab-3", nfe=100, timesteps="karras"),
        )
    )
    for text, found, nfe in ((figures[0], x, 5), (figures[1], y, 10)):
        distance = float((found - there).norm(dim=1).mean() / there.norm(dim=1).mean())
        told = re.fullmatch(rf"distance ([\d.]+) to the reference · {nfe} evaluations · [\d.]+ s", text)
        assert told is not None and float(told[1]) == pytest.approx(distance, rel=6e-3)
    name, png = seen.download("#compared .fs-row:nth-of-type(2) a[download$='-1.png']")
    assert name == "digits-ddim-5-1.png" and facts(png)["nfe"] == 10 and facts(png)["number"] == 1


def test_inpaint_with_a_mask_that_is_drawn(visit, digits, tmp_path, monkeypatch):
    seen = visit(digits)
    seen.choose("label", "7")
    seen.fill(n="2", steps="4")
    seen.page.click("#draw")
    seen.line("draw-said", "^2 pictures")
    _, source = seen.download("#drawn a[download]")
    seen.tab("Inpaint")
    seen.page.click("#take-drawn")
    canvas = seen.page.locator(".fs-board canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box["width"] >= 200

    def at(column: int, row: int) -> tuple[float, float]:
        return box["x"] + (column + 0.4) * box["width"] / 8, box["y"] + (row + 0.6) * box["height"] / 8

    seen.page.click("#inpaint")
    assert seen.line("inpaint-said", "nothing").startswith("nothing is marked: paint over what is to be drawn anew")
    seen.page.mouse.move(*at(2, 3))
    seen.page.mouse.down()
    seen.page.mouse.move(*at(6, 3), steps=6)
    seen.page.mouse.move(*at(6, 5), steps=3)
    seen.page.mouse.up()
    seen.page.mouse.click(*at(4, 3))  # and off again
    expected = np.zeros((8, 8), bool)
    expected[3, 2:7] = expected[3:6, 6] = True
    expected[3, 4] = False
    seen.page.click("#inpaint")
    seen.line("inpaint-said", "^2 pictures")
    _, png = seen.download("#inpainted a[download$='.png']")
    changed = pixels(Image.open(io.BytesIO(png))) != pixels(Image.open(io.BytesIO(source)))
    assert changed.any() and not changed[~expected].any()
    for name in ("init.png", "mask.png"):
        _, data = seen.download(f"#inpainted a[download='{name}']")
        (tmp_path / name).write_bytes(data)
    assert np.array_equal(pixels(Image.open(tmp_path / "mask.png")) > 0, expected)
    again(png, tmp_path, monkeypatch)
    # A part by its name, of a picture that is loaded.
    with seen.page.expect_file_chooser() as chooser:
        seen.page.click("#load-picture")
    picture = encoded(Image.fromarray(np.eye(8, dtype=np.uint8) * 255))
    chooser.value.set_files([{"name": "eye.png", "mimeType": "image/png", "buffer": picture}])
    seen.page.wait_for_function("document.querySelector('.fs-board img') !== null")
    seen.page.get_by_label("the lower half").check()
    seen.page.wait_for_timeout(500)
    seen.page.click("#inpaint")
    seen.line("inpaint-said", "^drawing|evaluation")
    seen.line("inpaint-said", "^2 pictures")
    _, png = seen.download("#inpainted a[download$='.png']")
    assert np.array_equal(pixels(Image.open(io.BytesIO(png)))[:4], np.eye(8, dtype=np.uint8)[:4] * 255)


def test_an_acceleration_is_watched_and_its_plan_used(visit, digits, tmp_path, monkeypatch):
    seen = visit(digits)
    seen.tab("Accelerate")
    seen.fill(accelerate_nfe="3", accelerate_noises="40", accelerate_iterations="1")
    curves = seen.watch("accelerate-curve")
    assert not seen.page.is_visible("#use-plan")
    seen.page.click("#accelerate")
    seen.line("accelerate-said", "^found a plan of 3 evaluations")
    shown = [text.count("<use") for text in curves() if "<svg" in text]  # a point each
    assert len(set(shown)) >= 4 and shown[0] < shown[-1]
    assert any("learned, after" in text and "the plan found" not in text for text in curves())
    assert "the plan found" in seen.page.inner_text("#accelerate-curve")
    assert "endpoint error" in seen.page.inner_text("#verdict") or "could be learned" in seen.page.inner_text(
        "#verdict"
    )
    _, plan = seen.download("#verdict a[download='plan.json']")
    assert fs.Plan.from_json(plan.decode()).nfe == 3
    seen.fill(seeds="9", n="20")
    seen.page.click("#use-plan")
    said = seen.line("draw-said", "^20 pictures")
    assert "3 evaluations" in said and "3 evaluations" in seen.page.inner_text("#plan-said")
    assert seen.page.get_by_role("tab", name="Draw").get_attribute("aria-selected") == "true"
    assert seen.page.locator("#steps :is(input, textarea)").is_disabled()
    _, png = seen.download("#drawn a[download]")
    _, offered = seen.download("#drawn a[download='plan.json']")
    assert json.loads(offered) == json.loads(plan) == json.loads(facts(png)["plan"])
    (tmp_path / "plan.json").write_bytes(offered)
    again(png, tmp_path, monkeypatch)
    # The plan among the samplers that are compared, and let go of again.
    seen.tab("Compare")
    seen.choose("solver-A", "the plan")
    seen.page.click("#compare")
    seen.line("compare-said", "20 pictures of each")
    assert seen.page.locator("#compared .fs-row .fs-figures").first.inner_text().count("3 evaluations") == 1
    seen.page.click("#drop-plan")
    seen.page.wait_for_function("!document.querySelector('#steps :is(input, textarea)').disabled")


def test_an_acceleration_is_stopped(visit, digits):
    seen, other = visit(digits), visit(digits)
    for page in (seen, other):
        page.tab("Accelerate")
        page.fill(accelerate_noises="2000")
    seen.page.click("#accelerate")
    seen.line("accelerate-said", "reference")
    other.page.click("#accelerate")
    assert other.line("accelerate-said", "already").startswith("an acceleration is running already")
    seen.page.click("#stop")
    assert seen.line("accelerate-said", "^stopped").endswith("no plan was found")
    seen.page.wait_for_function("!document.getElementById('accelerate').disabled")
    assert seen.page.locator("#stop").is_disabled()
    # Whoever leaves the page stops what was begun there.
    seen.page.click("#accelerate")
    seen.line("accelerate-said", "reference")
    seen.page.close()
    for _ in range(120):
        other.page.click("#accelerate")
        other.page.wait_for_timeout(1000)
        if "already" not in other.page.inner_text("#accelerate-said"):
            break
    other.line("accelerate-said", "reference")
    other.page.click("#stop")
    other.line("accelerate-said", "^stopped")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": "seven"}, "seeds are whole numbers from 0 to 9223372036854775807, got 'seven'"),
        ({"n": "0"}, "the number of pictures must be at least 1, got 0"),
        ({"n": "65"}, "n must be 1 to 64, got 65"),
        ({"steps": "9999"}, "steps must be 1 to 250, got 9999"),
        ({"guidance": "strong"}, "guidance must be a number, got 'strong'"),
        ({"caption": "a pink elephant"}, "unknown word 'pink'"),
    ],
)
def test_bad_input_is_one_line(visit, shapes, fields, message):
    seen = visit(shapes)
    seen.fill(**fields)
    seen.page.click("#draw")
    said = seen.line("draw-said", re.escape(message[:20]))
    assert message in said and "\n" not in said
    assert seen.page.locator("#draw-said [role=alert]").count() == 1
    assert "Traceback" not in seen.page.inner_text("body")


def test_bad_files_are_one_line(visit, digits):
    seen = visit(digits)
    from fewstep.processes.vp import VP

    other = fs.plan(VP(), "ddim", steps=3).to_json().encode()
    for data, message in ((b"no", "the file is no JSON"), (other, "the plan was made for another process")):
        with seen.page.expect_file_chooser() as chooser:
            seen.page.click("#load-plan")
        chooser.value.set_files([{"name": "plan.json", "mimeType": "application/json", "buffer": data}])
        assert seen.line("plan-said", message).startswith(message)
    seen.tab("Inpaint")
    seen.page.click("#inpaint")
    assert "there is no picture yet" in seen.line("inpaint-said", "there is no picture yet")
    with seen.page.expect_file_chooser() as chooser:
        seen.page.click("#load-picture")
    chooser.value.set_files([{"name": "picture.png", "mimeType": "image/png", "buffer": b"no"}])
    assert "the picture is no picture" in seen.line("inpaint-said", "the picture is no picture")
    seen.tab("Compare")
    seen.choose("solver-A", "the plan")
    seen.page.click("#compare")
    assert seen.line("compare-said", "there is no plan yet")


def test_usable_at_380_pixels(visit, digits):
    seen = visit(digits, 380)
    seen.fill(n="3", steps="12")
    for tab, button, done in (("Draw", "draw", "draw-said"), ("Compare", "compare", "compare-said"),
                              ("Inpaint", "inpaint", "inpaint-said"), ("Accelerate", None, None)):  # fmt: skip
        seen.tab(tab)
        if tab == "Inpaint":
            seen.page.click("#take-drawn")
            seen.page.wait_for_selector(".fs-board canvas")
            seen.page.get_by_label("the middle").check()
        if button is not None:
            seen.page.click(f"#{button}")
            seen.line(done, "^3 pictures")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 380, tab
        assert seen.over(380) == [], tab
        heights = seen.page.eval_on_selector_all(
            ":is(button, [role=tab], canvas, .fs-pictures a):not(.visually-hidden *)",
            "all => all.filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect().height)",
        )
        assert min(height for height in heights if height) >= 20, tab  # large enough for a finger
        text = seen.page.eval_on_selector_all(
            ".fs-pictures figcaption, .fs-way span, .fs-status, .fs-figures, .fs-again, label span",
            "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))",
        )
        assert min(text) >= 12, tab


def test_every_field_and_picture_has_a_name(visit, digits):
    seen = visit(digits)
    seen.fill(n="2", steps="3")
    seen.page.click("#draw")
    seen.line("draw-said", "^2 pictures")
    for tab in ("Draw", "Compare", "Inpaint", "Accelerate"):
        seen.tab(tab)
        if tab == "Inpaint":
            seen.page.click("#take-drawn")
            seen.page.wait_for_selector(".fs-board canvas")
        bare = seen.page.evaluate(
            """[...document.querySelectorAll("input, textarea, select, button, canvas, img")].filter(e =>
            e.checkVisibility() && e.type !== "hidden" && e.type !== "file").filter(e => !(e.labels?.length &&
            [...e.labels].some(l => l.innerText.trim())) && !e.getAttribute("aria-label")?.trim() &&
            !e.innerText?.trim() && !e.getAttribute("alt")?.trim() && !e.title).map(e => e.outerHTML.slice(0, 160))"""
        )
        assert bare == [], tab
