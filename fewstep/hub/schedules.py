"""A diffusers scheduler as a process, what its network predicts, and the rule of its own grid.

The table of noise levels and the grid are read off the scheduler itself (`set_timesteps`), so that its spacing, its
shift, its rescaled betas and its last step are applied exactly once, and as diffusers applies them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.process import Process, process_from_config
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM

METHODS = (
    Method(
        "diffusers-schedule",
        kind="import",
        claim="a diffusers scheduler's process, prediction and own grid, read off the scheduler itself",
        use="open_schedule",
    ),
)

TABLE = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
NOISE_LEVELS = ("CMStochasticIterativeScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
PLAN = "PlanScheduler"  # ours, which holds a plan in place of a rule for any number of steps
SUPPORTED = tuple(sorted((*TABLE, *FLOWS, *NOISE_LEVELS, PLAN)))

PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
# The index of the table at which a scheduler without noise levels ends; the others state it in set_alpha_to_one.
CLEAN_END = {"DDPMScheduler": True, "DDPMParallelScheduler": True, "LCMScheduler": True, "TCDScheduler": False}


@dataclass(frozen=True)
class Schedule:
    """What a scheduler states about a model.

    `scheduler` is diffusers' own, of which copies place the steps. `kind` says how the network is called and read:
    "table" (x, t) and "flow" (x, `train_steps` t) directly, "edm" and "consistency" with the preconditioning of EDM and
    of consistency models, whose standard deviation of the data is `data_std`. `clip`: x0 is clipped to [-clip, clip] at
    every step; None for no clipping.
    """

    process: Process
    predicts: str
    kind: str
    name: str
    scheduler: Any
    train_steps: int
    data_std: float = 0.5
    clip: float | None = None
    plan: Plan | None = None

    def network_time(self, t: Tensor) -> Tensor:
        """The network's time at the process time t."""
        if self.kind == "flow":
            return t * self.train_steps
        if self.kind == "edm":
            return t.log() / 4
        return t.log() * 250 if self.kind == "consistency" else t

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_in, c_skip, c_out of a preconditioned network F at noise level t: `x0 = c_skip x + c_out F(c_in x)`.

        EDM: Karras et al. (2022), Table 1; with "v" the output has the other sign. Consistency models: Song et al.
        (2023), appendix C, where t is counted from sigma_min, so that F is not evaluated at the end.
        """
        norm, above = (t**2 + self.data_std**2).sqrt(), t
        if self.kind == "consistency":
            above = t - self.process.t_min
        sign = -1 if self.predicts == "v" else 1
        skip = self.data_std**2 / (above**2 + self.data_std**2)
        return 1 / norm, skip, sign * above * self.data_std / norm

    def rule(self, further: Callable[[int], Mapping[str, Any]] | None = None) -> Callable[..., list[float]] | None:
        """The timestep rule of this scheduler; `further(steps)` is what else its pipeline passes to `set_timesteps`.

        None for a scheduler that holds a plan.
        """
        if self.name == PLAN:
            return None

        def own(process: Process, steps: int, end: str = "zero") -> list[float]:
            evaluations, last = self._places(process, steps, further)
            if end == "min":
                last = max(last, process.t_min)
            if not evaluations[-1] > last:
                # That evaluation is at the end itself and changes nothing: take one step more, and drop it.
                evaluations = self._places(process, steps + 1, further)[0][:-1]
            return [*evaluations, last]

        return own

    def _places(
        self, process: Process, steps: int, further: Callable[[int], Mapping[str, Any]] | None
    ) -> tuple[list[float], float]:
        """The times at which diffusers evaluates, and where it ends."""
        scheduler = copy.deepcopy(self.scheduler)  # set_timesteps writes into it, its configuration included
        try:
            scheduler.set_timesteps(steps, **(further(steps) if further else {}))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{self.name} cannot place {steps} steps: {' '.join(str(error).split())}") from None
        if not hasattr(scheduler, "sigmas"):  # whole steps; PNDM's list of them includes its stages as well
            whole = scheduler._timesteps[::-1] if self.name == "PNDMScheduler" else scheduler.timesteps.tolist()
            clean = CLEAN_END.get(
                self.name, bool(scheduler.config.get("set_alpha_to_one", self.name != "PNDMScheduler"))
            )
            return [float(t) for t in whole], process.t_zero if clean else process.t_min
        # Second-order schedulers list a noise level once for each of its stages.
        sigmas = _distinct(scheduler.sigmas.tolist())
        times = [_table_time(process, sigma) if self.kind == "table" else _edge(process, sigma) for sigma in sigmas]
        return (times if len(times) == steps else times[:-1]), times[-1]


def _edge(process: Process, level: float) -> float:
    """A noise level in float32 as a time: the process's ends are hit exactly."""
    return next((t for t in (process.t_min, process.t_max) if abs(level / t - 1) < 1e-6), level)


def _distinct(values: list[float]) -> list[float]:
    return [value for i, value in enumerate(values) if i == 0 or value != values[i - 1]]


def _table_time(process: Process, sigma: float) -> float:
    """The time at which sigma / alpha has this value: a whole step where it is one up to float32's rounding."""
    if sigma == 0:
        return process.t_zero
    t = min(process.time(-math.log(sigma)), process.t_max)
    whole = float(round(t))
    close = abs(process.log_snr(whole) + math.log(sigma)) < 1e-3 if math.isfinite(process.log_snr(whole)) else True
    return whole if close and abs(t - whole) < 0.05 else t


def _scheduler(name: str, config: Mapping[str, Any]) -> Any:
    import diffusers

    # PNDM's Runge-Kutta stages do not move its steps, but a grid of fewer than four has no room for them.
    further = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    return getattr(diffusers, name).from_config(dict(config), **further)


def open_schedule(scheduler: Any) -> Schedule:
    """The schedule of a diffusers scheduler, or of its configuration (a mapping with `_class_name`).

    Raises:
        ValueError: a scheduler of another class, a prediction or a time convention that is not known here.
    """
    if isinstance(scheduler, Mapping):
        name, config = str(scheduler.get("_class_name")), dict(scheduler)
    else:
        name, config = type(scheduler).__name__, dict(scheduler.config)
    if name not in SUPPORTED:
        raise ValueError(f"unsupported scheduler {name!r}; supported: {', '.join(SUPPORTED)}")
    if name == PLAN:
        held = Plan.from_json(config["plan"])
        kind = "flow" if held.process.get("process") == Flow.name else "table"
        made_for, steps = process_from_config(dict(held.process)), int(config["num_train_timesteps"])
        return Schedule(made_for, _predicts(config), kind, name, config, steps, plan=held)
    try:
        made = _scheduler(name, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"the configuration of {name} cannot be used: {error}") from None
    config = dict(made.config)
    steps = int(config["num_train_timesteps"])
    if name in NOISE_LEVELS:
        consistent = name == "CMStochasticIterativeScheduler"
        process: Process = EDM(float(config["sigma_min"]), float(config["sigma_max"]))
        predicts = "x0" if consistent else _predicts(config)
        clip = 1.0 if config.get("clip_denoised") else None
        kind = "consistency" if consistent else "edm"
        return Schedule(process, predicts, kind, name, made, steps, float(config["sigma_data"]), clip)
    if name in FLOWS or config.get("use_flow_sigmas"):
        if config.get("invert_sigmas"):
            raise ValueError(f"{name} with invert_sigmas runs from data to noise: that is not supported")
        return Schedule(Flow(), "flow" if name in FLOWS else _predicts(config), "flow", name, made, steps)
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"{name} with timestep_type {config['timestep_type']!r} is not supported: only 'discrete'")
    table = tuple(made.alphas_cumprod.double().tolist())
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    return Schedule(Discrete(table), _predicts(config), "table", name, made, steps, clip=clip)


def _predicts(config: Mapping[str, Any]) -> str:
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTS:
        raise suggest("prediction_type", kind, PREDICTS)
    return PREDICTS[kind]
