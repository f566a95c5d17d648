"""An acceleration in a thread of its own, that can be watched and stopped: the studio's search for a plan."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from typing import Any

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.report.plot import Plot
from fewstep.serving.studio_draw import line

SOLVERS = ("ddim", "dpmpp-2m", "unipc-2")  # whose errors are shown beside
NFES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
REFERENCE_NFE = 100
FEWEST, MOST = 40, 4096  # noises
LOG = logging.getLogger("fewstep.serving")


class Stopped(Exception):
    """Nobody wants the plan any more."""


class Hunt:
    """The search for a plan of `nfe` evaluations.

    First the errors of a few solvers at several numbers of evaluations are measured, then `accelerate` looks for a plan
    at the one asked for; both on the same `noises`, and the fit on as many others.

    Attributes (guarded by `news`, which is told of every change):
        curves: errors by solver and number of evaluations. best: the least error of the plans tried, and how many have
        been tried. learned: the held-out error after each iteration of the fit. judged: the error of the plan found.

    Raises:
        ValueError: numbers out of range, a model without a shape.
    """

    def __init__(self, model: Denoiser, nfe: int | None, noises: int | None, iterations: int | None):
        for what, value, least, most in (("evaluations", nfe, 1, 100), ("noises", noises, FEWEST, MOST),
                                         ("iterations", iterations, 1, 1000)):  # fmt: skip
            if value is None or not least <= value <= most:
                raise ValueError(f"the number of {what} must be {least} to {most}, got {value}")
        if model.shape is None:
            raise ValueError("this denoiser takes any shape: only models with a shape of their own are accelerated")
        assert nfe is not None and noises is not None and iterations is not None
        self.model, self.nfe, self.noises, self.iterations = model, nfe, noises, iterations
        self.news = threading.Condition()
        self.curves: dict[str, dict[int, float]] = {solver: {} for solver in SOLVERS}
        self.best, self.tried, self._noises, self._round = math.inf, 0, 0, 0
        self.learned: list[float] = []
        self.judged: float | None = None
        self.stage, self.wrong = "loading", ""
        self.notes: list[str] = []
        self.plan: dict[str, Any] | None = None
        self.version, self.done = 0, False
        self.begin, self.seconds = time.monotonic(), 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fewstep acceleration", daemon=True)

    def start(self) -> Hunt:
        self._thread.start()
        return self

    def stop(self, wait: float = 0.0) -> None:
        """End the search at the next call of the network."""
        self._stop.set()
        if wait and self._thread.is_alive():
            self._thread.join(wait)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def wait(self, version: int, seconds: float) -> int:
        """Wait until there is something newer than `version`, so many seconds at most; the version there is."""
        with self.news:
            self.news.wait_for(lambda: self.version > version or self.done, seconds)
            return self.version

    def plot(self) -> Plot:
        """Error against evaluations, as far as it is known."""
        with self.news:
            series = [(name, list(found), list(found.values())) for name, found in self.curves.items() if found]
            if math.isfinite(self.best):
                series.append((f"best of {self.tried} plans tried", [self.nfe], [self.best]))
            if self.learned:
                series.append(("learned, after each iteration", [self.nfe] * len(self.learned), list(self.learned)))
            if self.judged is not None:
                series.append(("the plan found", [self.nfe], [self.judged]))
        return Plot("Error against evaluations", series, "network evaluations", "error", log_x=True, log_y=True,
                    mark="the plan found")  # fmt: skip

    def status(self) -> str:
        """One line: where it is, and how long it has taken."""
        with self.news:
            if self.wrong:
                return self.wrong
            if not self.done:
                return f"{'stopping' if self.stopping else self.stage} · {time.monotonic() - self.begin:.0f} s"
            if self.plan is None:
                return f"stopped after {self.seconds:.0f} s: no plan was found"
            return f"found a plan of {self.nfe} evaluations in {self.seconds:.0f} s"

    # From here on: its own thread.

    def _run(self) -> None:
        try:
            self._search()
        except Stopped:
            pass
        except Exception as failed:
            text, known = line(failed)
            if not known:
                LOG.error("an acceleration failed", exc_info=failed)
            with self.news:
                self.wrong = text
        with self.news:
            self.seconds, self.done = time.monotonic() - self.begin, True
            self._changed()

    @torch.no_grad()
    def _search(self) -> None:
        from fewstep.acceleration.pipeline import accelerate_for
        from fewstep.sampling.build import fixed_plan
        from fewstep.searching.reference import error_estimate, relative_error, solve
        from fewstep.searching.shared import Runs, threads_for

        with threads_for(self.model):
            self.watch("stage", {"text": f"reference: {self.noises} noises, {REFERENCE_NFE} evaluations"})
            # The stream of seed 0 is learned from.
            problem = solve(
                self.model, 1, 0, self.noises, REFERENCE_NFE, torch.float32, tick=lambda: self.watch("call", {})
            )
            error = error_estimate(self.model, problem, REFERENCE_NFE)
            runs = Runs(self.model, problem)
            for nfe in sorted({*NFES, self.nfe}):
                for solver in SOLVERS:
                    self.watch("stage", {"text": f"{solver} at {nfe} evaluations"})
                    try:
                        plan = fixed_plan(self.model.process, solver, nfe=nfe)
                    except ValueError:  # this solver cannot do with so few
                        continue
                    samples = runs([plan])[0].samples
                    if samples is not None:
                        with self.news:
                            self.curves[solver][plan.nfe] = relative_error(samples, problem.reference)
            found = accelerate_for(
                self.model, self.nfe, runs, error,
                seed=0, noises=self.noises, iterations=self.iterations, progress=False, watch=self.watch,
            )  # fmt: skip
        with self.news:
            self.notes, self.plan = list(found.notes), json.loads(found.plan.to_json())
            chosen = min(row["endpoint"] for row in found.rows if row["role"] in ("candidate", "learned")
                         and row["endpoint"] is not None)  # fmt: skip
            self.judged = chosen

    def watch(self, kind: str, facts: dict[str, Any]) -> None:
        """What `accelerate` tells; `Stopped` where nobody wants to know any more."""
        if self._stop.is_set():
            raise Stopped
        if kind == "call":
            return
        with self.news:
            if kind == "stage":
                self.stage = facts["text"]
            elif kind == "tried":
                if facts["n"] > self._noises:  # a round on more of the noises
                    self.best, self._noises = math.inf, facts["n"]
                    self._round += 1
                self.best = min(self.best, facts["error"])
                self.tried += self._round == 1
            elif kind == "learned":
                self.learned.append(facts["error"])
            self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.news.notify_all()


class Hunts:
    """The searches of all who look at the page: one for each, and one at a time, since it takes what there is."""

    def __init__(self) -> None:
        self._of: dict[str, Hunt] = {}
        self._running: list[Hunt] = []  # among them those whose owners are gone
        self._lock = threading.Lock()

    def start(self, who: str, hunt: Hunt) -> Hunt:
        """`ValueError` where another one runs."""
        with self._lock:
            self._running = [other for other in self._running if not other.done]
            if self._running:
                raise ValueError("an acceleration is running already: stop it first, or wait for its end")
            self._running.append(hunt)
            self._of[who] = hunt
        return hunt.start()

    def get(self, who: str) -> Hunt | None:
        return self._of.get(who)

    def leave(self, who: str) -> None:
        """Whoever looked at it is gone."""
        with self._lock:
            hunt = self._of.pop(who, None)
        if hunt is not None:
            hunt.stop()

    def close(self, seconds: float = 30.0) -> None:
        for hunt in list(self._running):
            hunt.stop(seconds)
