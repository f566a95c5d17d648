"""What the studio draws: fields as a person fills them in, pictures as they form, a mask of what was painted."""

from __future__ import annotations

import io
import json
import math
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewstep.core.plan import Plan
from fewstep.serving import pictures
from fewstep.serving.engine import Closed, Full, Late
from fewstep.serving.protocol import MOST
from fewstep.serving.served import Served
from fewstep.serving.service import Drawing, Service, estimated_at

ESTIMATES = 50  # of a picture on its way that are shown at most
NOTHING = "nothing is marked: paint over what is to be drawn anew, or choose a part of the picture"
AREAS = {
    "the upper half": (0.0, 0.0, 0.5, 1.0),
    "the lower half": (0.5, 0.0, 1.0, 1.0),
    "the left half": (0.0, 0.0, 1.0, 0.5),
    "the right half": (0.0, 0.5, 1.0, 1.0),
    "the middle": (0.25, 0.25, 0.75, 0.75),
}  # of a picture, as shares of its height and width: top, left, bottom, right


@dataclass(frozen=True)
class Settings:
    """The fields of the page, as they are filled in; None and "" are fields left empty.

    seeds: one number for all pictures, or one for each picture. plan: as plan.json holds it, in the place of steps,
    solver and timesteps.
    """

    caption: str | None = None
    label: str | None = None
    seeds: str | None = None
    n: float | None = 8
    steps: float | str | None = None
    solver: str | None = None
    timesteps: str | None = None
    guidance: float | str | None = None
    negative: str | None = None
    plan: dict[str, Any] | None = None

    def asked(self) -> dict[str, Any]:
        """The fields of the server's protocol; `ValueError` for what is no number, or no whole one."""
        seeds, n = read_seeds(self.seeds), whole("the number of pictures", self.n)
        if n is not None and n < 1:
            raise ValueError(f"the number of pictures must be at least 1, got {n}")
        asked: dict[str, Any] = {"n": n or 1}
        if len(seeds) > 1:
            asked = {"seeds": seeds}
        elif seeds:
            asked |= {"seed": seeds[0]}
        asked |= {"prompt": self.caption or None, "negative": self.negative or None}
        asked |= {"guidance": number("guidance", self.guidance)}
        asked |= {"label": None if self.label in (None, "") else whole("the label", self.label)}
        if self.plan is not None:
            asked |= {"plan": self.plan}
        else:
            own = {"solver": self.solver or None, "timesteps": self.timesteps or None}
            asked |= own | {"steps": whole("the number of steps", self.steps)}
        return {name: value for name, value in asked.items() if value is not None}


def whole(what: str, value: Any) -> int | None:
    """A whole number that was typed, None for none; `ValueError` for others."""
    if value in (None, ""):
        return None
    try:
        found = float(value)
        if found.is_integer():
            return int(found)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{what} must be a whole number, got {str(value)[:40]!r}")


def number(what: str, value: Any) -> float | None:
    """A number that was typed, None for none; `ValueError` for others."""
    if value in (None, ""):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{what} must be a number, got {str(value)[:40]!r}")
    return found


def read_seeds(text: str | None) -> list[int]:
    """The seeds of "7", "3 7 11" and "3, 7, 11"; `ValueError` for others."""
    found = []
    for word in (text or "").replace(",", " ").split():
        if not (word.isascii() and word.isdecimal() and len(word) < 20 and int(word) <= MOST):
            raise ValueError(f"seeds are whole numbers from 0 to {MOST}, got {word[:40]!r}")
        found.append(int(word))
    return found


def read_plan(data: bytes) -> dict[str, Any]:
    """The plan of a file as JSON; `ValueError` for anything else."""
    try:
        found = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, RecursionError, json.JSONDecodeError):
        raise ValueError("the file is no JSON: a plan.json of fewstep is wanted") from None
    if not isinstance(found, dict):
        raise ValueError("the file is no plan: a plan.json of fewstep is wanted")
    made(found)
    return found


def made(plan: dict[str, Any]) -> Plan:
    """The plan of JSON; `ValueError` for what is none."""
    return Plan.from_json(json.dumps(plan))


@dataclass(frozen=True)
class Estimate:
    """What a picture was taken for at an evaluation, counted from 1, at the time t, so many seconds from the start."""

    evaluation: int
    t: float
    seconds: float
    png: bytes


@dataclass
class View:
    """What there is to see of a drawing: the latest of each picture, and the way of the first one."""

    drawing: Drawing
    sent: dict[str, bytes]
    latest: list[bytes | None]
    way: list[Estimate] = field(default_factory=list)
    seconds: float = 0.0
    done: bool = False

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What made each picture, once they are done."""
        return [told(png) for png in self.latest if png is not None] if self.done else []

    @property
    def files(self) -> dict[str, bytes]:
        """What the pictures' command names as files."""
        plan = self.drawing.wanted.plan
        own = {"plan.json": plan.to_json().encode()} if plan is not None else {}
        return own | {f"{name}.png": data for name, data in self.sent.items()}


def draw(service: Service, asked: dict[str, Any], sent: dict[str, bytes] | None = None) -> Iterator[View]:
    """A drawing as it forms, each time there is something new; the last view is done.

    sent: pictures, by the names "init" and "mask". It raises what `Service.begin` and a drawing's result do.
    """
    news: queue.SimpleQueue[tuple[int, int, bytes, float] | None] = queue.SimpleQueue()

    def partial(index: int, number: int, png: bytes) -> None:
        news.put((index, number, png, time.monotonic()))

    drawing = service.begin(asked | {"partial_images": ESTIMATES}, sent or {}, partial)
    try:
        drawing.job.result.add_done_callback(lambda _: news.put(None))
        plan = drawing.job.requests[0].plan
        assert isinstance(plan, Plan)  # others share no calls, and are refused
        times = [evaluation.t for evaluation in plan.evaluations]
        view = View(drawing, sent or {}, [None] * drawing.wanted.n)
        while (new := news.get()) is not None:
            index, number, png, clock = new
            view.latest[index] = png
            view.seconds = clock - drawing.job.started
            if index == 0:
                at = estimated_at(number, ESTIMATES, drawing.nfe)
                view.way.append(Estimate(at, times[at - 1], view.seconds, png))
            if news.empty():  # all that has come meanwhile is shown at once
                yield view
        found: list[bytes] = drawing.job.result.result()
        view.latest, view.done = list(found), True
        view.seconds = time.monotonic() - drawing.job.started
        view.way.append(Estimate(drawing.nfe, times[-1], view.seconds, found[0]))
        yield view
    finally:
        drawing.cancel()


def told(png: bytes) -> dict[str, Any]:
    """What a picture says of how it was made."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        found: dict[str, Any] = json.loads(image.text[pictures.KEY])  # type: ignore[attr-defined]
    return found


def line(failed: BaseException) -> tuple[str, bool]:
    """One line that says what went wrong, and whether that is known: what broke inside is named by its type alone."""
    text = " ".join(str(failed).split())
    if isinstance(failed, ValueError | Full | Late | Closed) and text:
        return text if len(text) <= 400 else f"{text[:397]}...", True
    return f"the model failed ({type(failed).__name__}): the terminal says more", False


def start_from(served: Served, data: bytes, pixels: int) -> bytes:
    """A picture that was sent, as a PNG of the model's size, to be painted on; `ValueError` for what is none."""
    found = pictures.picture(data, served.base, "the picture", pixels)
    return pictures.png(found, served.base.value_range)


def painted(text: str, shape: Sequence[int]) -> bytes:
    """The mask of what was marked on the board: white where it is opaque by half or more.

    text: a PNG in base64, a pixel for each of the model's picture `(C, H, W)`.

    Raises:
        ValueError: nothing marked, another size, no picture.
    """
    if not text:
        raise ValueError(NOTHING)
    image = pictures.opened(pictures.from_base64(text, "the mask"), "the mask", shape[1] * shape[2])
    if image.size != (shape[2], shape[1]):
        raise ValueError(f"the mask must have the picture's {shape[2]}x{shape[1]} pixels, got {image.size}")
    marked = np.asarray(image.convert("RGBA"))[..., 3] >= 128
    if not marked.any():
        raise ValueError(NOTHING)
    return _mask(marked)


def area(name: str, shape: Sequence[int]) -> bytes:
    """The mask of a part of the picture, by its name in `AREAS`."""
    top, left, bottom, right = AREAS[name]
    marked = np.zeros((shape[1], shape[2]), bool)
    rows = slice(round(top * shape[1]), round(bottom * shape[1]))
    marked[rows, round(left * shape[2]) : round(right * shape[2])] = True
    return _mask(marked)


def _mask(marked: np.ndarray) -> bytes:
    from fewstep.report.grid import png_bytes

    return png_bytes(np.where(marked, 255, 0).astype(np.uint8))
