"""What the studio shows, as HTML: pictures with their downloads, the way of a picture, figures beside each other."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fewstep.report.grid import png_bytes
from fewstep.report.plot import Plot, svg
from fewstep.report.table import format_number
from fewstep.serving.studio_compare import Row
from fewstep.serving.studio_draw import Estimate, View, told

Keep = Callable[[bytes], str]  # a picture's address

PIXELS = 128  # of a side, below which pixels are shown hard
WAY = 10  # estimates of a picture that are shown beside each other


def status(text: str, wrong: bool = False) -> str:
    """A line that is read aloud where someone listens."""
    role, kind = ("alert", " wrong") if wrong else ("status", "")
    return f'<p class="fs-status{kind}" role="{role}">{html.escape(text)}</p>' if text else ""


def drawing(view: View, keep: Keep, name: str) -> tuple[str, str]:
    """The line of a drawing's state and its pictures, with their downloads and the command when they are done."""
    served = view.drawing.running.served
    assert served.shape is not None
    seeds, parts = view.drawing.wanted.seeds, []
    for png, (seed, number) in zip(view.latest, seeds, strict=True):
        caption = f"seed {seed}" + (f", no. {number}" if len(seeds) > 1 and seeds[-1][1] else "")
        parts.append(_figure(png, caption, keep if view.done else None, f"{name}-{seed}-{number}.png"))
    shown = f'<div class="fs-pictures {_kind(served.shape)}">{"".join(parts)}</div>'
    if not view.done:
        at = view.way[-1] if view.way else None
        text = "drawing" if at is None else f"evaluation {at.evaluation} of {view.drawing.nfe} · t = {at.t:.3g}"
        return status(f"{text} · {view.seconds:.2f} s"), shown + way(view.way, served.shape)
    count = f"{len(parts)} picture{'s' * (len(parts) > 1)}"
    line = f"{count} · {view.drawing.nfe} evaluations each of {view.drawing.solver} · {view.seconds:.2f} s"
    command = view.facts[0]["command"]
    again = f'<p class="fs-again">The same again: <code>{html.escape(command)}</code>{_links(view.files)}</p>'
    return status(line), shown + way(view.way, served.shape) + again


def way(estimates: Sequence[Estimate], shape: Sequence[int]) -> str:
    """How the first picture formed."""
    if not estimates:
        return ""
    last = len(estimates) - 1
    at = sorted({round(k * last / (WAY - 1)) for k in range(WAY)}) if last >= WAY else range(last + 1)
    parts = []
    for one in (estimates[k] for k in at):
        under = f"<b>{one.evaluation}</b><br>t = {one.t:.2g}<br>{_short(one.seconds)}"
        alt = f"estimate after evaluation {one.evaluation}"
        parts.append(f'<li><img src="{_data(one.png)}" alt="{alt}"><span>{under}</span></li>')
    return (
        '<h3 class="fs-head">How the first picture formed, by evaluations made</h3>'
        f'<ol class="fs-way {_kind(shape)}" tabindex="0" aria-label="estimates on the way">{"".join(parts)}</ol>'
    )


def comparison(rows: Sequence[Row], names: Sequence[str], keep: Keep, shape: Sequence[int], model: str) -> str:
    """The rows of a comparison: the two that were asked for, by `names`, then the references."""
    asked = [row for row in rows if not row.reference]
    parts = [_compared(name, row, keep, shape, model) for name, row in zip(names, asked, strict=False)]
    parts += [_compared("", row, keep, shape, model) for row in rows if row.reference]
    return "".join(parts)


def _compared(letter: str, row: Row, keep: Keep, shape: Sequence[int], model: str) -> str:
    if row.reference:
        title, figure = row.name, "what the others are measured against"
    elif row.distance is None:
        title, figure = f"{letter}: {row.name}", "no distance: it draws noise of its own"
    else:
        title, figure = f"{letter}: {row.name}", f"distance {format_number(row.distance)} to the reference"
    if row.guidance is not None:
        title += f", guidance {row.guidance:g}"
    parts = []
    for png in row.pictures:
        about = told(png)
        word = row.name.split(" ")[0]
        caption = f"seed {about['seed']}, no. {about['number']}"
        parts.append(_figure(png, caption, keep, f"{model}-{word}-{about['seed']}-{about['number']}.png", small=True))
    files = {} if row.plan is None else {"plan.json": row.plan.encode()}
    return (
        f'<section class="fs-row"><h3>{html.escape(title)}</h3>'
        f'<p class="fs-figures"><b>{figure}</b> · {row.nfe} evaluations · {format_number(row.seconds)} s'
        f"{_links(files)}</p>"
        f'<div class="fs-pictures small {_kind(shape)}">{"".join(parts)}</div></section>'
    )


def board(png: bytes, shape: Sequence[int]) -> str:
    """A picture to mark parts of (`studio.js`)."""
    _, height, width = shape
    keys = "arrow keys move, space marks"
    return (
        f'<div class="fs-board"><div><img src="{_data(png)}" alt="the picture to be painted on">'
        f'<canvas width="{width}" height="{height}" tabindex="0" role="application"'
        f' aria-label="what is to be drawn anew: {keys}"></canvas><span class="fs-cursor"></span></div>'
        f'<p><label>Brush <input type="range" min="1" max="{max(1, max(height, width) // 2)}"'
        f' value="{max(1, round(max(height, width) / 8))}"></label><button type="button">Clear</button>'
        "<small>Paint what is to be drawn anew; a stroke that begins on paint wipes it off."
        f" By keyboard: {keys}.</small></p></div>"
    )


def plotted(plot: Plot) -> str:
    """A plot as a picture in the page."""
    if not any(len(xs) for _, xs, _ in plot.series):
        return ""
    return f'<div class="fs-plot">{svg(plot, "fs")}</div>'


def verdict(notes: Sequence[str], plan: str) -> str:
    """What was found, and its plan to take along."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="fs-notes">{items}</ul><p class="fs-again">The plan:{_links({"plan.json": plan.encode()})}</p>'


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _figure(png: bytes | None, caption: str, keep: Keep | None, file: str, small: bool = False) -> str:
    """A picture; with a download where it is kept."""
    if png is None:
        return '<figure><span class="fs-blank"></span><figcaption>&nbsp;</figcaption></figure>'
    if keep is None:
        image = f'<img src="{_data(png)}" alt="picture on its way, {caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    where = html.escape(keep(png))
    image = f'<img src="{where}" alt="picture of {caption}">'
    link = f'href="{where}" download="{html.escape(file)}" title="download the PNG of {caption}"'
    under = "" if small else f"<figcaption><span>{caption}</span> <span aria-hidden=true>↓ PNG</span></figcaption>"
    return f"<figure><a {link}>{image}{under}</a></figure>"


def _links(files: Mapping[str, bytes]) -> str:
    """Files that travel in the page."""
    kinds = {"json": "application/json", "png": "image/png"}
    return "".join(
        f' <a class="fs-file" download="{name}"'
        f' href="data:{kinds[name.rpartition(".")[2]]};base64,{base64.b64encode(data).decode()}">↓ {name}</a>'
        for name, data in files.items()
    )


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _kind(shape: Sequence[int]) -> str:
    """How pictures of a shape are shown: those of few pixels with hard ones."""
    return "hard" if max(shape[1:]) < PIXELS else "soft"


def head(name: str, about: Mapping[str, Any]) -> str:
    """The top of the page."""
    size = about["shape"]
    facts = [f"pictures of {size[2]}x{size[1]}"] if size is not None and len(size) == 3 else []
    facts += [f"{about['classes']} classes"] if about["classes"] else []
    facts += ["captions"] if about["captions"] else []
    facts += [f"a plan of {about['evaluations']} evaluations of its own"] if about["evaluations"] else []
    return f"<h1>fewstep studio</h1><p><b>{html.escape(name)}</b> · {html.escape(', '.join(facts))}</p>"


def icon() -> bytes:
    """The page's icon: few steps."""
    steps = np.full((32, 32, 3), 255, np.uint8)
    for step in range(4):
        steps[32 - 8 * (step + 1) :, 8 * step : 8 * (step + 1)] = (37, 99, 235)
    return png_bytes(steps)
