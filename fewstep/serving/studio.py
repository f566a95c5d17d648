"""The studio: a page in the browser that draws, compares, inpaints and accelerates. Needs gradio."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import methods
from fewstep.guidance.guide import guide
from fewstep.serving import studio_shown as shown
from fewstep.serving.service import Service
from fewstep.serving.studio_accelerate import Hunt, Hunts
from fewstep.serving.studio_compare import compare
from fewstep.serving.studio_draw import (
    AREAS,
    Settings,
    area,
    draw,
    line,
    made,
    number,
    painted,
    read_plan,
    start_from,
    whole,
)

PATH, HERE = "/studio", Path(__file__).parent
LOG = logging.getLogger("fewstep.serving")
ANY, BEST, USUAL, PLAN = "any", "best for these steps", "the solver's usual one", "the plan"
STROKES = "what I paint"
FRAME = 0.4  # seconds between two pictures of an acceleration, at least


def needed() -> Any:
    """Gradio; `ImportError` that names the extra, where it is missing."""
    # It would count its users, and look for newer versions of itself.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise ImportError("the studio needs gradio: pip install 'fewstep[studio]'") from None
    return gradio


def create_studio(service: Service) -> tuple[Any, Hunts]:
    """The server's application with the page at `PATH`, to which the root leads; and the accelerations begun on it."""
    gr = needed()
    from fastapi.responses import RedirectResponse, Response

    from fewstep.serving.app import create_app

    app, hunts = create_app(service), Hunts()

    @app.get("/", include_in_schema=False)
    async def root() -> Any:
        return RedirectResponse(f"{PATH}/")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Any:
        return Response(shown.icon(), media_type="image/png")

    page = _Page(service, hunts).blocks
    page.queue(default_concurrency_limit=16)
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    theme = gr.themes.Base(primary_hue="blue", font=system, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app, page, PATH, theme=theme, css_paths=HERE / "studio.css",
        head=f"<script>{(HERE / 'studio.js').read_text('utf-8')}</script>", footer_links=[], run_history=False,
        max_file_size=service.limits.pixels, ssr_mode=False, pwa=False, mcp_server=False,
    )  # fmt: skip
    return app, hunts


class _Page:
    """The parts of the page, and what happens when they are used."""

    def __init__(self, service: Service, hunts: Hunts):
        self.gr, self.service, self.hunts = needed(), service, hunts
        self.name = service.default
        with service.models.using(self.name) as running:
            self.served = running.served
        if self.served.shape is None or not self.served.pictures:
            raise ValueError("this model's samples are no pictures, which the studio shows: see 'fewstep sample'")
        self.about = self.served.describe()
        gr = self.gr
        with gr.Blocks(title=f"fewstep studio: {self.name}", analytics_enabled=False,
                       delete_cache=(3600, 3600)) as self.blocks:  # fmt: skip
            self._html("top", shown.head(self.name, self.about))
            self.plan = gr.State(None)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self._settings()
                with gr.Column(scale=3, min_width=320), gr.Tabs() as self.tabs:
                    with gr.Tab("Draw", id="draw"):
                        self._draw()
                    with gr.Tab("Compare", id="compare"):
                        self._compare()
                    with gr.Tab("Inpaint", id="inpaint"):
                        self._inpaint()
                    with gr.Tab("Accelerate", id="accelerate"):
                        self._accelerate()

            def gone(request: Any) -> None:
                hunts.leave(request.session_hash)

            gone.__annotations__["request"] = gr.Request
            self.blocks.unload(gone)

    def on(self, event: Any, work: Callable[..., Iterator[Any]], inputs: Any, outputs: Any, who: bool = False,
           **options: Any) -> Any:  # fmt: skip
        """What an event does; what goes wrong is one line in the first output. With `who` the work is told who asks."""
        gr, count = self.gr, len(outputs)

        def guarded(request: Any, *values: Any) -> Iterator[Any]:
            try:
                yield from work(request.session_hash, *values) if who else work(*values)
            except Exception as failed:
                text, known = line(failed)
                if not known:
                    LOG.error("the studio failed", exc_info=failed)
                yield (shown.status(text, wrong=True), *[gr.skip()] * (count - 1))

        guarded.__annotations__["request"] = gr.Request  # by which it is handed in
        return event(guarded, inputs, outputs, api_visibility="private", show_progress="hidden", **options)

    def _settings(self) -> None:
        gr, about = self.gr, self.about
        own = about["evaluations"]
        self.caption = gr.Textbox(label="Caption", visible=about["captions"], elem_id="caption", max_lines=3,
                                  info=self._words())  # fmt: skip
        kinds = [ANY, *map(str, range(about["classes"] or 0))]
        self.label = gr.Dropdown(kinds, value=ANY, label="Label", visible=bool(about["classes"]), elem_id="label")
        with gr.Row():
            self.seeds = self._short("7", "Seeds", "seeds", placeholder="any")
            self.n = self._short("8", "Pictures", "n")
        with gr.Row():
            self.steps = self._short("" if own else "10", "Steps", "steps")
            self.guidance = self._short("", "Guidance", "guidance", visible=about["guidance"], placeholder="none")
        solvers = self._solvers()
        self.solver = gr.Dropdown([BEST, *solvers], value=BEST, label="Solver", elem_id="solver")
        rules = [USUAL, *(method.name for method in methods("rule"))]
        self.timesteps = gr.Dropdown(rules, value=USUAL, label="Timesteps", elem_id="timesteps")
        self.negative = gr.Textbox(label="Keep away from", visible=about["captions"] and about["guidance"],
                                   elem_id="negative", info="A caption; needs guidance.")  # fmt: skip
        with gr.Row():
            load = gr.UploadButton("Load a plan", type="binary", file_types=[".json"], size="sm", elem_id="load-plan",
                                   min_width=100)  # fmt: skip
            drop = gr.Button("Drop the plan", size="sm", interactive=False, elem_id="drop-plan", min_width=100)
        self.plan_said = self._html("plan-said")
        self.planned = [self.plan_said, self.plan, self.steps, self.solver, self.timesteps, drop]
        self.on(load.upload, lambda data: self._with_plan(read_plan(data)), [load], self.planned)
        self.on(drop.click, lambda: self._with_plan(None), [], self.planned)
        self.fields = [self.caption, self.label, self.seeds, self.n, self.steps, self.solver, self.timesteps,
                       self.guidance, self.negative, self.plan]  # fmt: skip

    def _html(self, name: str, value: str = "") -> Any:
        return self.gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=None)

    def _short(self, value: str, label: str, name: str, **options: Any) -> Any:
        """A field of one line, which may be left empty."""
        return self.gr.Textbox(value, label=label, elem_id=name, max_lines=1, min_width=90, **options)

    def _words(self) -> str | None:
        words = self.about["words"]
        return f"Its words: {' '.join(words)}." if words and len(words) <= 64 else None

    def _solvers(self) -> list[str]:
        from fewstep.sampling.auto import SDE
        from fewstep.sampling.build import solver_names

        return [*solver_names(), SDE]

    def _with_plan(self, plan: dict[str, Any] | None) -> Iterator[Any]:
        """A plan in the place of steps, solver and timesteps, or none."""
        gr = self.gr
        text = ""
        if plan is not None:
            found = made(plan)
            if not found.fits(self.served.base.process):
                raise ValueError("the plan was made for another process than the model's")
            text = f"plan: {found.name}, {found.nfe} evaluations, in the place of steps, solver and timesteps"
        free = [gr.update(interactive=plan is None) for _ in range(3)]
        yield (shown.status(text), plan, *free, gr.update(interactive=plan is not None))

    def settings(self, caption: Any, label: Any, seeds: Any, n: Any, steps: Any, solver: Any, timesteps: Any,
                 guidance: Any, negative: Any, plan: Any) -> Settings:  # fmt: skip
        """What is filled in, as the server takes it."""
        return Settings(
            caption,
            None if label == ANY else label,
            seeds,
            n,
            steps,
            None if solver == BEST else solver,
            None if timesteps == USUAL else timesteps,
            guidance,
            negative,
            plan,
        )

    def _draw(self) -> None:
        gr = self.gr
        button = gr.Button("Draw", variant="primary", elem_id="draw")
        said, found = self._html("draw-said"), self._html("drawn")
        self.drawn = gr.State(None)

        def work(*fields: Any) -> Iterator[Any]:
            yield shown.status("drawing"), gr.skip(), gr.skip()
            for view in draw(self.service, self.settings(*fields).asked()):
                first = view.latest[0] if view.done else gr.skip()
                yield (*shown.drawing(view, self.keep, self.name), first)

        self.draw_work, self.draw_outputs = work, [said, found, self.drawn]
        self.on(button.click, work, self.fields, self.draw_outputs)

    def keep(self, png: bytes) -> str:
        """The address at which a picture is found for a while."""
        return f"/v1/images/files/{self.service.kept.add(png)}.png"

    def _compare(self) -> None:
        gr, fields = self.gr, []
        solvers = [BEST, PLAN, *self._solvers()]
        with gr.Row():
            for letter, solver, steps in (("A", BEST, "5"), ("B", "ddim", "20")):
                with gr.Column(min_width=240), gr.Group():
                    fields.append(gr.Dropdown(solvers, value=solver, label=f"Solver {letter}",
                                              elem_id=f"solver-{letter}"))  # fmt: skip
                    with gr.Row():
                        fields.append(self._short(steps, f"Steps {letter}", f"steps-{letter}"))
                        fields.append(self._short("", f"Guidance {letter}", f"guidance-{letter}", placeholder="none",
                                                  visible=self.about["guidance"]))  # fmt: skip
        button = gr.Button("Compare", variant="primary", elem_id="compare")
        said, found = self._html("compare-said"), self._html("compared")

        def row(plan: Any, solver: str, steps: Any, guidance: Any) -> Settings:
            if solver != PLAN:
                return Settings(solver=None if solver == BEST else solver, steps=steps, guidance=guidance)
            if plan is None:
                raise ValueError("there is no plan yet: load one, or accelerate the model")
            return Settings(plan=plan, guidance=guidance)

        def work(*values: Any) -> Iterator[Any]:
            common = self.settings(*values[:-6])
            rows = [row(common.plan, *values[-6:-3]), row(common.plan, *values[-3:])]
            yield shown.status("solving the model's equation in 100 evaluations"), gr.skip()
            seen = []
            for seen in compare(self.service, common, rows):
                page = shown.comparison(seen, "AB", self.keep, self.about["shape"], self.name)
                yield shown.status("drawing"), page
            count = len(seen[0].pictures)
            yield shown.status(f"{count} pictures of each, from the same noises"), gr.skip()

        self.on(button.click, work, [*self.fields, *fields], [said, found])

    def _inpaint(self) -> None:
        gr = self.gr
        with gr.Row():
            last = gr.Button("Take the picture drawn", size="sm", elem_id="take-drawn", min_width=120)
            load = gr.UploadButton("Load a picture", type="binary", file_types=[".png", ".jpg", ".jpeg", ".webp"],
                                   size="sm", elem_id="load-picture", min_width=120)  # fmt: skip
        with gr.Row():
            with gr.Column(min_width=280):
                board = self._html("board")
            with gr.Column(min_width=280):
                part = gr.Radio([STROKES, *AREAS], value=STROKES, label="Drawn anew", elem_id="part")
                strength = gr.Slider(0.05, 1, value=1, step=0.05, label="Strength", elem_id="strength",
                                     info="Noise on the picture to begin with; 1 forgets what was there.")  # fmt: skip
                button = gr.Button("Inpaint", variant="primary", elem_id="inpaint")
        said, found, source = self._html("inpaint-said"), self._html("inpainted"), gr.State(None)

        def take(png: bytes | None) -> Iterator[Any]:
            if png is None:
                raise ValueError("there is no picture yet: draw one, or load one")
            yield "", png, shown.board(png, self.about["shape"])

        def taken(data: bytes) -> Iterator[Any]:
            yield from take(start_from(self.served, data, self.service.limits.pixels))

        def work(png: bytes | None, strokes: str, chosen: str, share: float, *fields: Any) -> Iterator[Any]:
            if png is None:
                raise ValueError("there is no picture yet: take the one drawn, or load one")
            shape = self.about["shape"]
            marked = painted(strokes, shape) if chosen == STROKES else area(chosen, shape)
            settings = self.settings(*fields)
            asked = settings.asked() | ({"strength": share} if share < 1 else {})
            yield shown.status("drawing"), gr.skip()
            for view in draw(self.service, asked, {"init": png, "mask": marked}):
                yield shown.drawing(view, self.keep, self.name)

        self.on(last.click, take, [self.drawn], [said, source, board])
        self.on(load.upload, taken, [load], [said, source, board])
        # What is marked is read from the canvas, in the place of the board's own HTML.
        marks = "(source, board, ...others) => [source, window.fewstepMarked(), ...others]"
        self.on(button.click, work, [source, board, part, strength, *self.fields], [said, found], js=marks)

    def _accelerate(self) -> None:
        gr = self.gr
        with gr.Row():
            nfe = self._short("4", "Evaluations", "accelerate-nfe")
            noises = self._short("256", "Noises", "accelerate-noises")
            iterations = self._short("12", "Iterations", "accelerate-iterations")
        with gr.Row():
            start = gr.Button("Accelerate", variant="primary", elem_id="accelerate", min_width=120)
            stop = gr.Button("Stop", elem_id="stop", interactive=False, min_width=80)
        said, curve = self._html("accelerate-said"), self._html("accelerate-curve")
        verdict, plan = self._html("verdict"), gr.State(None)
        use = gr.Button("Use this plan", variant="primary", elem_id="use-plan", visible=False)
        outputs = [said, curve, verdict, plan, start, stop, use]

        def switch(on: bool) -> Any:
            return gr.update(interactive=on)

        def work(who: str, guidance: Any, *numbers: Any) -> Iterator[Any]:
            names = ("the number of evaluations", "the number of noises", "the number of iterations")
            given = [whole(what, number) for what, number in zip(names, numbers, strict=True)]
            hunt = self.hunts.start(who, Hunt(self._guided(guidance), *given))
            version = 0
            yield shown.status(hunt.status()), "", "", None, switch(False), switch(True), gr.update(visible=False)
            while not hunt.done:
                version, begin = hunt.wait(version, 1.0), time.monotonic()
                yield (shown.status(hunt.status()), shown.plotted(hunt.plot()), *[gr.skip()] * 5)
                time.sleep(max(0.0, FRAME - (time.monotonic() - begin)))
            after = "" if hunt.plan is None else shown.verdict(hunt.notes, json.dumps(hunt.plan))
            yield (shown.status(hunt.status(), wrong=bool(hunt.wrong)), shown.plotted(hunt.plot()), after, hunt.plan,
                   switch(True), switch(False), gr.update(visible=hunt.plan is not None))  # fmt: skip

        def halt(who: str) -> Iterator[Any]:
            if (hunt := self.hunts.get(who)) is not None:
                hunt.stop()
            yield (switch(False),)  # the line of state is the search's own

        def take(found: dict[str, Any] | None) -> Iterator[Any]:
            if found is None:
                raise ValueError("there is no plan yet: accelerate the model first")
            yield (*next(self._with_plan(found)), gr.Tabs(selected="draw"))

        self.on(start.click, work, [self.guidance, nfe, noises, iterations], outputs, who=True)
        self.on(stop.click, halt, [], [stop], who=True)
        taken = self.on(use.click, take, [plan], [*self.planned, self.tabs])
        self.on(taken.then, self.draw_work, self.fields, self.draw_outputs)

    def _guided(self, typed: Any) -> Denoiser:
        """The model, with the guidance that its plan is to be found for."""
        base, guidance = self.served.base, number("guidance", typed)
        if guidance is None:
            return base
        if not self.served.guides:
            raise ValueError("guidance needs a model that is conditioned on a label or a caption")
        return guide(base, "cfg", scale=guidance)
