"""DC-Solver: compensation ratios fitted step by step to a teacher's states, and predicted where none were fitted."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.core.files import read_text
from fewstep.core.methods import Method
from fewstep.core.ops import Combine, Evaluate
from fewstep.core.plan import Plan
from fewstep.report.files import write_text
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.sampling.compensation import advances, compensate, updates
from fewstep.searching.candidates import rank
from fewstep.searching.job import Job
from fewstep.searching.stepwise import Stepper, Values, distance, least, places

METHODS = (
    Method(
        "dc-solver",
        paper="DC-Solver: Improving Predictor-Corrector Diffusion Sampler via Dynamic Compensation (Zhao et al., 2024)",
        arxiv="2409.03755",
        claim="one compensation ratio a step, fitted on a dozen trajectories, or predicted from other step counts",
        use="dc_solver",
        facts={"quick": {"timesteps": "log-snr"}},
    ),
)

SOLVERS = ("unipc-2", "unipc-3", "dpmpp-2m")
RULES = ("log-snr", "karras", "uniform", "quadratic", "short")
LOW, HIGH = -1.0, 4.0  # of a ratio
FORMAT = "fewstep-ratios-1"


def reached(plan: Plan, evaluation: int) -> tuple[int, int, float]:
    """What an update after this evaluation leads to: the operation, slot and time of the state at the next time, with
    the correction that the evaluation there makes possible, where the plan has one."""
    wanted, place = advances(plan), places(plan)[evaluation]
    t = plan.evaluations[evaluation].t
    found: tuple[int, int, float] | None = None
    for i, op in enumerate(plan.ops[place + 1 :], place + 1):
        if isinstance(op, Combine):
            at = wanted.get(op.slot, math.inf)
            if found is None:
                if at < t:
                    found = (i, op.slot, at)
            elif at < found[2]:
                break  # the next update
            else:
                found = (i, op.slot, found[2])
        elif found is not None and isinstance(op, Evaluate) and op.t < found[2]:
            break
    assert found is not None
    return found


def fit_ratios(
    job: Job,
    plan: Plan,
    trajectories: int,
    known: Sequence[float] = (),
    save: Callable[[list[float]], None] | None = None,
) -> list[float]:
    """One ratio for each of the plan's updates, in turn: that which brings the state at the next time nearest to the
    teacher's, with the earlier ratios as they were found.

    `known` are ratios fitted before; `save` is called with all so far after each.
    """
    able, ratios = updates(plan), list(known)
    if len(ratios) == len(able):
        return ratios
    stops = [reached(plan, e) for e in able]
    times = sorted({t for _, _, t in stops}, reverse=True)
    targets = dict(zip(times, job.trajectory(times, trajectories), strict=True))
    stepper = Stepper(job.model, job.train.part(0, min(trajectories, job.noises)))
    values, done = stepper.start(plan), 0
    for k in range(len(known), len(able)):
        # The ratios to come are not 1 here, so that every output which they will need is kept.
        rest = [0.5] * (len(able) - k - 1)
        here = places(plan)[able[k]] + 1
        values = stepper.run(compensate(plan, [*ratios, 0.5, *rest]).ops[done:here], values)
        miss = functools.partial(_miss, stepper, plan, values, here, stops[k], targets, list(ratios), rest)
        ratios.append(least(miss, LOW, HIGH, 1.0))
        done = here
        if save is not None:
            save(ratios)
    return ratios


def _miss(
    stepper: Stepper,
    plan: Plan,
    values: Values,
    here: int,
    stop: tuple[int, int, float],
    targets: dict[float, Tensor],
    before: list[float],
    rest: list[float],
    rho: float,
) -> float:
    """How far the state after an update with ratio `rho` is from the teacher's."""
    last, slot, t = stop
    made = compensate(plan, [*before, rho, *rest])
    return distance(stepper.run(made.ops[here : last + 1], values)[slot], targets[t])


class RatioPredictor:
    """Ratios as a polynomial in the update's position (0 to 1), the evaluations and the guidance scale.

    The paper's cascade (section 3.3) makes the coefficients of a polynomial in the position polynomials in the number
    of evaluations, and their coefficients polynomials in the scale: products of powers, fitted here at once by least
    squares. Degrees are lowered to what the data can tell. The ratios of few steps follow such a polynomial on uniform
    times, the paper's; on log-SNR and karras times they hardly do.
    """

    DEGREES = (3, 2, 1)

    def __init__(
        self, degrees: Sequence[int], centre: Sequence[float], width: Sequence[float], weights: Sequence[float]
    ):
        self.degrees, self.centre, self.width = tuple(degrees), tuple(centre), tuple(width)
        self.weights = tuple(weights)

    @classmethod
    def fit(cls, rows: Sequence[tuple[int, float, Sequence[float]]]) -> RatioPredictor:
        """From rows of (evaluations, guidance scale, ratios); the scale is 1 where there is no guidance.

        Raises:
            ValueError: no ratios at all.
        """
        points = [(u, float(nfe), float(scale)) for nfe, scale, ratios in rows for u in _positions(len(ratios))]
        values = [rho for _, _, ratios in rows for rho in ratios]
        if not values:
            raise ValueError("there are no ratios to fit a predictor to")
        table = np.array(points)
        most = min(len(ratios) for _, _, ratios in rows if len(ratios)) - 1
        told = (most, *(len(np.unique(table[:, axis])) - 1 for axis in (1, 2)))
        degrees = tuple(min(degree, limit) for degree, limit in zip(cls.DEGREES, told, strict=True))
        centre, width = table.mean(0), np.where(np.ptp(table, axis=0) > 0, np.ptp(table, axis=0) / 2, 1.0)
        made = cls(degrees, centre.tolist(), width.tolist(), ())
        weights = np.linalg.lstsq(made._powers(table), np.array(values), rcond=None)[0]
        return cls(degrees, made.centre, made.width, weights.tolist())

    def _powers(self, points: np.ndarray) -> np.ndarray:
        scaled = (points - np.array(self.centre)) / np.array(self.width)
        terms = itertools.product(*(range(degree + 1) for degree in self.degrees))
        return np.stack([np.prod(scaled ** np.array(term), axis=1) for term in terms], axis=1)

    def predict(self, nfe: int, count: int, scale: float = 1.0) -> list[float]:
        """`count` ratios for a plan of `nfe` evaluations."""
        if count == 0:
            return []
        points = np.array([(u, nfe, scale) for u in _positions(count)])
        return [float(rho) for rho in self._powers(points) @ np.array(self.weights)]

    def to_json(self) -> dict[str, object]:
        parts = {"degrees": self.degrees, "centre": self.centre, "width": self.width, "weights": self.weights}
        return {"format": FORMAT} | {key: list(value) for key, value in parts.items()}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> RatioPredictor:
        """The predictor of `to_json`; `ValueError` for anything else."""
        try:
            if data["format"] != FORMAT:
                raise ValueError
            return cls(data["degrees"], data["centre"], data["width"], data["weights"])  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"not a predictor of ratios: its format is not {FORMAT!r}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        write_text(Path(path), json.dumps(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RatioPredictor:
        return cls.from_json(json.loads(read_text(path)))


def _positions(count: int) -> list[float]:
    return [i / (count - 1) for i in range(count)] if count > 1 else [0.0] * count


def _fitted(job: Job, state: dict[str, Any], plan: Plan, key: str, trajectories: int) -> list[float]:
    """`fit_ratios`, its progress kept in the search's state."""

    def save(ratios: list[float]) -> None:
        state["ratios"][key] = list(ratios)
        job.save(state)

    return fit_ratios(job, plan, trajectories, state["ratios"].get(key, ()), save)


def dc_solver(
    job: Job,
    solver: str | None = None,
    timesteps: str | None = None,
    trajectories: int = 12,
    fit_nfes: Sequence[int] | None = None,
) -> None:
    """Dynamic compensation of a predictor-corrector's plans (Zhao et al., 2024, Algorithms 1 and 2).

    Every base plan is offered as it is, then with its ratios.

    Args:
        solver, timesteps: the base; by default each of SOLVERS on that of RULES which suits it best.
        trajectories: training noises that ratios are fitted on, at most.
        fit_nfes: fit the ratios at these numbers of evaluations instead, and predict those of `job.nfe` by regression;
            `job.result` is then the last base's predictor as JSON.
    """
    process = job.process
    state = job.state
    if state is None:
        bases = []
        for name in SOLVERS if solver is None else (solver,):
            rules = RULES if timesteps is None else (timesteps,)
            plans = [make_plan(process, name, nfe=job.nfe, timesteps=rule) for rule in rules]
            best = rank(plans, job.model, job.held_out)[0].plan if len(plans) > 1 else plans[0]
            bases.append([name, best.about["timesteps"]])
        state = {"bases": bases, "ratios": {}, "tried": 0}
        job.save(state)
    for i, (name, rule) in enumerate(state["bases"]):
        if i < state["tried"] and not (fit_nfes and i == len(state["bases"]) - 1):
            continue
        base = make_plan(process, name, nfe=job.nfe, timesteps=rule)
        job.offer(base)

        if fit_nfes is None:
            ratios = _fitted(job, state, base, f"{i}", trajectories)
        else:
            rows = []
            for nfe in fit_nfes:
                made = make_plan(process, name, nfe=nfe, timesteps=rule)
                rows.append((made.nfe, 1.0, _fitted(job, state, made, f"{i}, {nfe}", trajectories)))
            predictor = RatioPredictor.fit(rows)
            job.result = predictor.to_json()
            ratios = predictor.predict(base.nfe, len(updates(base)))
        job.offer(compensate(base, ratios))
        state["tried"] = i + 1
        job.save(state)
