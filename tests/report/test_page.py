from __future__ import annotations

import base64
import io
import os
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.report.grid import to_pixels
from fewstep.report.page import Pictures, Report, render, write_report
from fewstep.report.plot import Plot
from fewstep.report.table import Table

EMPTY = {"meta", "link", "br", "img", "hr", "input"}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 1, 4, 5)
REPORT = Report(
    title="4 steps <script>alert(1)</script> & more",
    lead=["First paragraph.", "Second <i>one</i>."],
    facts=[("model", 'a "digits" model'), ("error", 0.012345), ("lost", float("nan"))],
    sections=[
        Pictures("Samples", IMAGES, ["ddim <4>", "unipc, 4 steps"], note="A column is one noise."),
        Plot("Curve", [("a<b", [1, 2], [1.0, 2.0])], "steps", "error", lines=[("floor", 1.5)]),
        Plot("Second curve", [("a<b", [1, 2], [1.0, 2.0])], "steps", "error"),
        Table("All", ["solver", "error <%>"], [["<b>ddim</b>", 0.5], ["unipc", 0.125], ["lost", None]],
              best={"error <%>": "low"}),
    ],
)  # fmt: skip


class Page(HTMLParser):
    """Checks that tags balance, and keeps elements as (tag, attributes, text)."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.elements = [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in EMPTY:
            self.stack.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop()[0] == tag, tag

    def handle_data(self, data):
        for _, index in self.stack:
            self.elements[index][2] += data

    def all(self, tag):
        return [(attrs, text.strip()) for name, attrs, text in self.elements if name == tag]


@pytest.fixture(scope="module")
def text():
    return render(REPORT)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_nothing_outside_is_referred_to(text, page):
    assert "http://" not in text and "https://" not in text and "@import" not in text
    for tag, attrs, _ in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert name not in attrs or attrs[name].startswith(("data:", "#")), (tag, attrs)
    assert [attrs.get("src") for attrs, _ in page.all("script")] == [None]


def test_text_is_escaped(text, page):
    assert "<script>alert" not in text and "<b>ddim" not in text and "<i>" not in text
    assert page.all("h1")[0][1] == page.all("title")[0][1] == "4 steps <script>alert(1)</script> & more"
    assert [t for a, t in page.all("p")] == ["First paragraph.", "Second <i>one</i>."]
    assert [t for _, t in page.all("dd")] == ['a "digits" model', "0.0123", "–"]


def test_headings_name_their_sections(page):
    assert [t for _, t in page.all("h2")] == ["Samples", "Curve", "Second curve", "All"]
    assert [a["aria-labelledby"] for a, _ in page.all("section")] == [a["id"] for a, _ in page.all("h2")]


def test_pictures_hold_the_pixels(page):
    images = page.all("img")
    assert len(images) == 6
    assert images[4][0]["alt"] == "unipc, 4 steps, noise 2"
    for (attrs, _), expected in zip(images, to_pixels(IMAGES).reshape(6, 4, 5), strict=True):
        head, data = attrs["src"].split(",")
        assert head == "data:image/png;base64" and "sharp" in attrs["class"]
        assert (attrs["width"], attrs["height"]) == ("5", "4")
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert np.array_equal(np.asarray(image), expected)
    assert [t for a, t in page.all("th") if a.get("scope") == "row"] == ["ddim <4>", "unipc, 4 steps"]


def test_table_rows_and_the_best(page):
    cells = [(a.get("class"), a.get("data-number"), t) for a, t in page.all("td")][6:]
    assert cells == [
        (None, None, "<b>ddim</b>"), ("number", "0.5", "0.500"),
        (None, None, "unipc"), ("number best", "0.125", "0.125 (best)"),
        (None, None, "lost"), ("number", None, "–"),
    ]  # fmt: skip
    assert [t for _, t in page.all("figcaption")] == [
        "A column is one noise.",
        "Bold: the best of its column.",
    ]


def test_plots_are_inside_and_do_not_share_ids(page):
    assert len(page.all("svg")) == 2
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_written_whole_and_the_same_again(tmp_path, text):
    path = write_report(tmp_path / "new" / "folder", REPORT)
    assert path.name == "report.html" and os.listdir(path.parent) == ["report.html"]
    assert path.read_text("utf-8") == text
    write_report(path.parent, Report("short", "One paragraph."))
    short = Page(path.read_text("utf-8"))
    assert [t for _, t in short.all("p")] == ["One paragraph."] and not short.all("dl") and not short.all("section")


def test_bad_sections():
    with pytest.raises(ValueError, match="2 rows of images but 1 labels"):
        Pictures("t", IMAGES, ["a"])
    with pytest.raises(ValueError, match="rows, columns"):
        Pictures("t", IMAGES[0], ["a"])
    with pytest.raises(ValueError, match="not str"):
        render(Report("t", sections=["text"]))
