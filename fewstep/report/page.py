"""The report of a job: one HTML page with pictures, plots and tables inside, that opens anywhere, offline."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.report.files import write_text
from fewstep.report.grid import VISIBLE, png_bytes, to_pixels
from fewstep.report.plot import Plot, svg
from fewstep.report.table import Table, cells, format_number, numeric_columns

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Pictures:
    """Samples side by side: `images` (R, C, channels, H, W).

    Each row is a setting, with its label ("unipc, 8 steps"), and each column one initial noise.
    """

    title: str
    images: Tensor
    row_labels: Sequence[str]
    note: str = ""
    value_range: tuple[float, float] = (-1.0, 1.0)
    marked: Sequence[int] = ()  # numbers of rows that a reader is to see at once

    def __post_init__(self) -> None:
        if self.images.ndim != 5 or self.images.numel() == 0:
            got = tuple(self.images.shape)
            raise ValueError(f"images of {self.title!r} must be (rows, columns, channels, H, W), not {got}")
        if len(self.row_labels) != len(self.images):
            raise ValueError(f"{self.title!r} has {len(self.images)} rows of images but {len(self.row_labels)} labels")


@dataclass(frozen=True)
class Folded:
    """A section that opens on a click: `title` is the line that shows, and says what is inside and why it is there."""

    title: str
    section: Pictures | Table


Section = Pictures | Plot | Table | Folded


@dataclass(frozen=True)
class Report:
    """A page: `lead` is one paragraph or several, `facts` are (name, value) pairs."""

    title: str
    lead: str | Sequence[str] = ()
    facts: Sequence[tuple[str, Any]] = ()
    sections: Sequence[Section] = ()


def write_report(folder: str | Path, report: Report) -> Path:
    """Render `report` to `folder`/report.html, whole or not at all; return its path.

    The folder is created if necessary. The page refers to nothing outside itself; all text is escaped.
    """
    page = render(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return write_text(folder / "report.html", page)


def render(report: Report) -> str:
    """The page as text, the same for the same report. ValueError for a section of another kind."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        title=report.title,
        lead=[report.lead] if isinstance(report.lead, str) else list(report.lead),
        facts=[(name, format_number(value)) for name, value in report.facts],
        sections=[_section(section, f"s{index}") for index, section in enumerate(report.sections, 1)],
    )


def _section(section: Section, name: str) -> dict[str, Any]:
    """What the template shows of a section; `name` is its id on the page."""
    if not isinstance(section, Section):
        raise ValueError(f"a section must be Pictures, Plot, Table or Folded, not {type(section).__name__}")
    if isinstance(section, Folded):
        return _section(section.section, name) | {"folded": section.title}
    shown: dict[str, Any] = {"id": name, "title": section.title, "note": section.note, "best": False, "folded": ""}
    if not isinstance(section, Plot):
        shown["marked"] = set(section.marked)
    if isinstance(section, Pictures):
        height, width = section.images.shape[-2:]
        size = {"height": height, "width": width, "sharp": min(height, width) < VISIBLE}
        return shown | {"kind": "pictures", "rows": _pictures(section)} | size
    if isinstance(section, Plot):
        from markupsafe import Markup

        return shown | {
            "kind": "plot",
            "svg": Markup(svg(section, name)),
        }  # its text was escaped as it was drawn
    heads = zip(section.columns, numeric_columns(section), strict=True)
    return shown | {"kind": "table", "heads": list(heads), "rows": cells(section), "best": bool(section.best)}


def _pictures(section: Pictures) -> list[tuple[str, list[str]]]:
    """Rows of data URIs. Pixels are kept as they are: the page enlarges small images, and sharply."""
    pixels = to_pixels(section.images, section.value_range)
    return [
        (
            label,
            ["data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii") for image in row],
        )
        for label, row in zip(section.row_labels, pixels, strict=True)
    ]
