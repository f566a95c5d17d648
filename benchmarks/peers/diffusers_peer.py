"""diffusers: its schedulers as its pipelines drive them, on the timesteps and the float32 tables they make."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.peers.harness import Build, Loop, NullNetwork, Outcome, Solver, counted
from benchmarks.peers.problems import F64, Problem

NAME = "diffusers"
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
# The schedules of most schedulers.
GRIDS: dict[str, dict[str, Any]] = {
    "linspace": {},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exp": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
TO_MIN = {"final_sigmas_type": "sigma_min"}


@functools.cache
def library() -> ModuleType:
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import diffusers

    diffusers.logging.set_verbosity_error()
    return diffusers


def _steps(evaluations: str, nfe: int) -> int | None:
    """Steps within a budget: one evaluation a step, two but for the last step, or one and one more (PNDM)."""
    if evaluations == "two":
        return (nfe + 1) // 2 if nfe >= 3 else None
    return nfe - 1 if evaluations == "pndm" else nfe


class Pipeline:
    """A run as a pipeline makes it.

    `network`: "vp" (a DDPM network, its input at unit variance), "k" (the same behind `scale_model_input`, the state
    being x / alpha), "flow" or "edm" (the preconditioned network F). One scheduler is made and used again, as KDPM2's
    constructor alone takes 76 ms.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        evaluations: str,
        network: str,
        ends_at_table: bool = False,
        set_timesteps: Callable[[Any, int], None] | None = None,
        eta: float | None = None,
        seed: int | None = None,
    ):
        self.scheduler = functools.cache(make)
        self.evaluations, self.network, self.ends_at_table = evaluations, network, ends_at_table
        self.set_timesteps = set_timesteps or (lambda scheduler, n: scheduler.set_timesteps(n))
        self.eta, self.seed = eta, seed

    def __call__(self, problem: Problem, nfe: int, begin_index: bool = False) -> Outcome:
        n = _steps(self.evaluations, nfe)
        if n is None or n < 1:
            return None
        scheduler = self.scheduler()
        self.set_timesteps(scheduler, n)
        if begin_index:
            scheduler.set_begin_index(0)
        options: dict[str, Any] = {} if self.eta is None else {"eta": self.eta}
        if self.seed is not None:
            options["generator"] = torch.Generator().manual_seed(self.seed)
        x = self._start(scheduler, problem)
        for t in scheduler.timesteps:
            out = self._answer(scheduler, problem, x, t)
            x = scheduler.step(out, t, x, **options).prev_sample.to(F64)
        if self.ends_at_table:
            r = math.sqrt(max(0.0, 1 / float(scheduler.final_alpha_cumprod) - 1))
        else:
            r = float(scheduler.sigmas[-1])
        if self.network == "vp":
            return x * math.sqrt(1 + r * r), r
        return (x / (1 - r), r / (1 - r)) if self.network == "flow" else (x, r)

    def _start(self, scheduler: Any, problem: Problem) -> torch.Tensor:
        if self.network == "vp":
            if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) == len(scheduler.timesteps) + 1:
                return problem.start(float(scheduler.sigmas[0]), "vp")
            return problem.start(problem.path.table_ratio(int(scheduler.timesteps[0])), "vp")
        first = float(scheduler.sigmas[0])
        if self.network == "flow":
            return problem.start(math.inf if first >= 1 else first / (1 - first), "rf")
        return problem.start(first, "ve")

    def _answer(self, scheduler: Any, problem: Problem, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.network == "flow":
            return problem.velocity(x, float(t) / 1000.0)
        scaled = scheduler.scale_model_input(x, t)
        if self.network == "edm":  # F at c_noise = log(sigma) / 4
            sigma, data = float(torch.exp(4 * t.double())), scheduler.config.sigma_data
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.sqrt(sigma**2 + data**2)
            return (problem.x0(x, 1.0, sigma) - skip * x) / out
        r = problem.path.table_ratio(float(t))
        a = 1 / math.sqrt(1 + r * r)
        return problem.eps(scaled.to(F64), a, r * a)


def _solver(name: str, grid: str, scheduler: str, evaluations: str, network: str, **rest: Any) -> Solver:
    """`rest`: what `Pipeline` takes by name, and the scheduler's own options.

    Equal integer timesteps make several schedulers begin at the wrong index and then crash; `set_begin_index(0)` is
    the way round it.
    """
    driven = {key: rest.pop(key) for key in ("ends_at_table", "set_timesteps", "eta", "seed") if key in rest}
    run = Pipeline(lambda: getattr(library(), scheduler)(**rest), evaluations, network, **driven)
    return Solver(NAME, name, grid, run, functools.partial(run, begin_index=True), remedy="needs set_begin_index(0)")


def _variants(order: int) -> tuple[str, ...]:
    return ("midpoint", "heun") if order == 2 else ("midpoint",)


def _suffix(variant: str) -> str:
    return "" if variant == "midpoint" else f" {variant}"


def _table_solvers(path: str) -> list[Solver]:
    """For networks on a table of 1000 steps."""
    base = LINEAR if path == "vp_linear" else COSINE
    clip = {} if path == "vp_linear" else {"lambda_min_clipped": -5.1}
    multistep, singlestep = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    options: dict[str, Any]
    out = []
    for spacing in ("trailing", "leading", "linspace"):
        options = {"clip_sample": False, "timestep_spacing": spacing} | base
        out.append(_solver("DDIM", spacing, "DDIMScheduler", "one", "vp", ends_at_table=True, **options))
    for grid, spaced in (GRIDS | {"lu": {"use_lu_lambdas": True}}).items():
        for order in (1, 2, 3):
            for variant in _variants(order):
                options = {"solver_order": order, "solver_type": variant} | spaced | clip | base
                name, plus = f"{order}M{_suffix(variant)}", {"algorithm_type": "dpmsolver++"}
                out.append(_solver(f"DPM++ {name}", grid, multistep, "one", "vp", **plus, **options))
                if variant == "midpoint" and grid in ("linspace", "trailing", "lu"):
                    options |= TO_MIN
                    out.append(_solver(f"DPM++ {name} smin", grid, multistep, "one", "vp", **plus, **options))
                    options |= {"algorithm_type": "dpmsolver"}
                    out.append(_solver(f"DPM-Solver {name}", grid, multistep, "one", "vp", **options))
    for grid, spaced in GRIDS.items():
        if grid != "trailing":
            for order in (2, 3):
                options = {"algorithm_type": "dpmsolver++", "solver_order": order, "lower_order_final": True}
                out.append(
                    _solver(f"DPM++ {order}S", grid, singlestep, "one", "vp", **options, **spaced, **clip, **base)
                )
        shared = {"grid": grid, "scheduler": "UniPCMultistepScheduler", "evaluations": "one", "network": "vp"}
        unipc: Callable[..., Solver] = functools.partial(_solver, **shared)
        for order in (2, 3):
            options = {"solver_order": order} | spaced | base
            out += [unipc(f"UniPC-{order} {variant}", solver_type=variant, **options) for variant in ("bh1", "bh2")]
            out.append(_solver(f"DEIS-{order}", grid, "DEISMultistepScheduler", "one", "vp", **options))
        out.append(unipc("UniPC-3 smin", solver_order=3, **TO_MIN, **spaced, **base))
        options = {"tau_func": lambda t: 0.0} | spaced | clip | base
        out.append(_solver("SA-Solver tau=0", grid, "SASolverScheduler", "one", "vp", **options))
        for name, scheduler, evaluations in (
            ("Heun", "HeunDiscreteScheduler", "two"),
            ("KDPM2", "KDPM2DiscreteScheduler", "two"),
            ("LMS-4", "LMSDiscreteScheduler", "one"),
            ("Euler", "EulerDiscreteScheduler", "one"),
        ):
            out.append(_solver(name, grid, scheduler, evaluations, "k", **spaced, **base))
    for spacing in ("leading", "trailing"):
        options = {"skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": spacing} | base
        out.append(_solver("PNDM (PLMS)", spacing, "PNDMScheduler", "pndm", "vp", ends_at_table=True, **options))
    return out


def _table_stochastic() -> list[Solver]:
    ddpm = {"eta": 1.0, "seed": 1, "clip_sample": False, "timestep_spacing": "trailing"} | LINEAR
    out = [_solver("DDIM eta=1 (DDPM)", "trailing", "DDIMScheduler", "one", "vp", ends_at_table=True, **ddpm)]
    for grid in ("linspace", "karras"):
        base = GRIDS[grid] | LINEAR
        sde = {"algorithm_type": "sde-dpmsolver++", "seed": 1} | base
        for order in (1, 2, 3):
            options = sde | {"solver_order": order}
            out.append(_solver(f"SDE-DPM++ {order}M", grid, "DPMSolverMultistepScheduler", "one", "vp", **options))
        options = sde | {"solver_order": 2, "lower_order_final": True}
        out.append(_solver("SDE-DPM++ 2S", grid, "DPMSolverSinglestepScheduler", "one", "vp", **options))
        for name, tau in (("SA-Solver tau=1", {"tau_func": lambda t: 1.0}), ("SA-Solver default tau", {})):
            out.append(_solver(name, grid, "SASolverScheduler", "one", "vp", seed=1, **tau, **base))
        out.append(_solver("DPMSolverSDE", grid, "DPMSolverSDEScheduler", "two", "k", noise_sampler_seed=1, **base))
    for name, evaluations in (("EulerAncestral", "one"), ("KDPM2Ancestral", "two")):
        out.append(_solver(name, "linspace", f"{name}DiscreteScheduler", evaluations, "k", seed=1, **LINEAR))
    return out


def _edm_solvers(stochastic: bool) -> list[Solver]:
    multistep, out = "EDMDPMSolverMultistepScheduler", []
    for grid in ("karras", "exponential"):
        base: dict[str, Any] = {"sigma_schedule": grid}
        if stochastic:
            base |= {"algorithm_type": "sde-dpmsolver++", "seed": 1}
            for order in (1, 2):
                name = f"EDM SDE-DPM++ {order}M"
                out.append(_solver(name, grid, multistep, "one", "edm", solver_order=order, **base))
            continue
        for order in (1, 2, 3):
            for variant in _variants(order):
                name, options = f"EDM DPM++ {order}M{_suffix(variant)}", {"solver_order": order} | base
                out.append(_solver(name, grid, multistep, "one", "edm", solver_type=variant, **options))
        out.append(_solver("EDM Euler", grid, "EDMEulerScheduler", "one", "edm", **base))
    return out


def _flow_solvers() -> list[Solver]:
    def as_pipelines(scheduler: Any, n: int) -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n))

    euler, heun = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
    options: dict[str, Any]
    out = []
    for shift in (1.0, 3.0):
        driven: dict[str, Any] = {"set_timesteps": as_pipelines, "shift": shift}
        out.append(_solver("FlowEuler", f"pipe shift{shift:g}", euler, "one", "flow", **driven))
        out.append(_solver("FlowHeun", f"shift{shift:g}", heun, "two", "flow", shift=shift))
    for grid in ("default", "karras", "exp", "beta"):
        out.append(_solver("FlowEuler", grid, euler, "one", "flow", **GRIDS.get(grid, {})))
    for shift in (1.0, 3.0):
        base: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        add: Callable[..., Solver] = functools.partial(
            _solver, grid=f"flow shift{shift:g}", evaluations="one", network="flow", **base
        )
        for order in (1, 2, 3):
            for variant in _variants(order):
                options = {"scheduler": "DPMSolverMultistepScheduler", "solver_order": order, "solver_type": variant}
                out.append(add(f"DPM++ {order}M{_suffix(variant)}", **options))
        for order in (2, 3):
            options = {"scheduler": "DPMSolverSinglestepScheduler", "lower_order_final": True}
            out.append(add(f"DPM++ {order}S", solver_order=order, **options))
            for variant in ("bh1", "bh2"):
                options = {"scheduler": "UniPCMultistepScheduler", "solver_order": order, "solver_type": variant}
                out.append(add(f"UniPC-{order} {variant}", **options))
            out.append(add(f"DEIS-{order}", scheduler="DEISMultistepScheduler", solver_order=order))
        out.append(add("SA-Solver tau=0", scheduler="SASolverScheduler", tau_func=lambda t: 0.0))
    return out


def solvers(path: str, stochastic: bool) -> list[Solver]:
    """Its solvers for a path; none for the continuous VP path, of which it has no schedule."""
    if path == "vp_linear" and stochastic:
        return _table_stochastic()
    if path in ("vp_linear", "cosine") and not stochastic:
        return _table_solvers(path)
    if path == "edm":
        return _edm_solvers(stochastic)
    return _flow_solvers() if path == "rf" and not stochastic else []


def _case(scheduler: str, **options: Any) -> Build:
    def build(shape: tuple[int, ...], steps: int) -> tuple[Loop, int]:
        made = getattr(library(), scheduler)(**options)
        network, noise = NullNetwork(torch.randn(shape) * 0.1), torch.randn(shape)

        def loop() -> torch.Tensor:  # what a pipeline runs for one batch
            made.set_timesteps(steps)
            x = noise
            for t in made.timesteps:
                scaled = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
                x = made.step(network(scaled, t), t, x, return_dict=False)[0]
            return x

        return counted(loop, network)

    return build


def overhead_cases() -> dict[str, Build]:
    base = {"beta_start": 1e-4, "beta_end": 0.02}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    multistep = "DPMSolverMultistepScheduler"
    return {
        "DDIM": _case("DDIMScheduler", clip_sample=False, **base),
        "DPM++ 2M": _case(multistep, **base),
        "DPM++ 3M": _case(multistep, solver_order=3, **base),
        "SDE-DPM++ 2M": _case(multistep, algorithm_type="sde-dpmsolver++", **base),
        "DPM++ 2S": _case("DPMSolverSinglestepScheduler", lower_order_final=True, **base),
        "UniPC-2": _case("UniPCMultistepScheduler", **base),
        "UniPC-3": _case("UniPCMultistepScheduler", solver_order=3, **base),
        "DEIS-3": _case("DEISMultistepScheduler", solver_order=3, **base),
        "SA-Solver": _case("SASolverScheduler", **base),
        "PNDM": _case("PNDMScheduler", skip_prk_steps=True, **base),
        "Euler": _case("EulerDiscreteScheduler", **base),
        "Heun": _case("HeunDiscreteScheduler", **base),
        "KDPM2": _case("KDPM2DiscreteScheduler", **base),
        "LMS-4": _case("LMSDiscreteScheduler", **base),
        "EDM DPM++ 2M": _case("EDMDPMSolverMultistepScheduler"),
        "FlowMatchEuler": _case("FlowMatchEulerDiscreteScheduler"),
        "DPM++ 2M (flow)": _case(multistep, **flow),
    }
