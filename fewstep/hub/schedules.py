"""A diffusers scheduler as a process, what its network predicts, and the rule of its own grid.

The table of noise levels and the grid are read off the scheduler itself (`set_timesteps`), so that its spacing, its
shift, its rescaled betas and its last step are applied exactly once, and as diffusers applies them.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.prediction import expand
from fewstep.core.process import Process, process_from_config
from fewstep.core.words import number_of
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.sampling.thresholding import quantile

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
# TCDScheduler has the keys of both and reads neither.
CLIPS = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
)
THRESHOLDS = (
    *(name for name in CLIPS if name != "HeunDiscreteScheduler"),
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
FEW = 2  # steps, with which some spacings begin far below full noise
ENOUGH = 0.9  # of the time at which a grid of more steps begins

Further = Callable[[int], Mapping[str, Any]]  # what else a pipeline passes to `set_timesteps`, by the number of steps


@dataclass(frozen=True)
class Schedule:
    """What a scheduler states about a model.

    `scheduler` is diffusers' own, of which copies place the steps. `kind` says how the network is called and read:
    "table" (x, t) and "flow" (x, `train_steps` t) directly, "edm" and "consistency" with the preconditioning of EDM and
    of consistency models, whose standard deviation of the data is `data_std`.

    What the scheduler does to every x0 (`finished`): with `clip`, it is clipped to [-clip, clip]; with `threshold`, a
    quantile and a largest value, it is divided by its own quantile, as `Thresholded` does; with `boundary`, the time
    scale of a latent consistency model, the state is mixed in near the data.
    """

    process: Process
    predicts: str
    kind: str
    name: str
    scheduler: Any
    train_steps: int
    data_std: float = 0.5
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    boundary: float | None = None
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

    @property
    def finishes(self) -> bool:
        """Whether the scheduler changes the network's x0."""
        return (self.clip, self.threshold, self.boundary) != (None, None, None)

    def finished(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's x0 `(B, *shape)` at state x and time t, as the scheduler uses it."""
        if self.threshold is not None:
            ratio, largest = self.threshold
            s = quantile(x0.abs().flatten(1), ratio).clamp(min=1.0, max=largest).reshape(-1, *[1] * (x0.ndim - 1))
            x0 = x0.clamp(-s, s) / s
        elif self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        if self.boundary is None:
            return x0
        scaled = t.double() * self.boundary  # Luo et al. (2023), LCM, whose data have the standard deviation 0.5
        norm = scaled**2 + 0.25
        return expand(0.25 / norm, x) * x + expand(scaled / norm.sqrt(), x) * x0

    def rule(self, further: Further | None = None) -> OwnGrid | None:
        """The timestep rule of this scheduler; None for one that holds a plan.

        Raises:
            ValueError: a scheduler that cannot place steps, or whose steps begin where its network's answer says
                nothing of the sample.
        """
        if self.name == PLAN:
            return None
        made = OwnGrid(self, further)
        first = made.placed(self.process, min(3, self.process.table_steps or 3))[0]
        if self.predicts == "eps" and self.process.alpha(first) == 0:
            raise ValueError(
                f"{self.name} begins at pure noise (rescale_betas_zero_snr), where a network that predicts 'epsilon'"
                " says nothing of the sample: it takes one that predicts 'v_prediction' or 'sample'"
            )
        return made


@dataclass(frozen=True)
class OwnGrid:
    """A scheduler's own grid as a timestep rule; `further` is what else its pipeline passes to `set_timesteps`."""

    schedule: Schedule
    further: Further | None = None
    __name__ = "own"  # as rules are named in a plan

    def __call__(self, process: Process, steps: int, end: str = "zero") -> list[float]:
        """`steps + 1` times. One or two steps that would begin below full noise are spaced from it instead."""
        times = self.placed(process, steps, end)
        if steps > FEW:
            return times
        try:
            begin = self._places(process, 2 * FEW + 1)[0][0]
        except ValueError:  # a table that short has no more steps
            return times
        if times[0] >= ENOUGH * begin:
            return times
        warnings.warn(
            f"{self.schedule.name} would begin {number_of(steps, 'step')} at time {times[0]:.4g} of"
            f" {process.t_max:.4g}, below full noise: its trailing spacing is used",
            stacklevel=2,
        )
        times = self.placed(process, steps, end, trailing=True)
        return times if times[0] >= ENOUGH * begin else [begin, *times[1:]]

    def fine(self, process: Process, steps: int, end: str = "zero") -> list[float]:
        """The grid in many steps from full noise to the end, whatever the scheduler's spacing leaves out."""
        return self.placed(process, steps, end, trailing=True)

    def placed(self, process: Process, steps: int, end: str = "zero", trailing: bool = False) -> list[float]:
        """`steps + 1` times as diffusers places them, by its trailing spacing where asked and where it has one."""
        evaluations, last = self._places(process, steps, trailing)
        low = process.t_min if end == "min" else -math.inf
        if not evaluations[-1] > max(last, low):
            # That evaluation is at the end itself and changes nothing: take one step more, and drop it.
            evaluations, last = self._places(process, steps + 1, trailing)
            evaluations = evaluations[:-1]
        return [*evaluations, max(last, low)]

    def _places(self, process: Process, steps: int, trailing: bool = False) -> tuple[list[float], float]:
        """The times at which diffusers evaluates, and where it ends."""
        name = self.schedule.name
        scheduler = copy.deepcopy(self.schedule.scheduler)  # set_timesteps writes into it, its configuration included
        if trailing and "timestep_spacing" in keys(type(scheduler)):
            scheduler.register_to_config(timestep_spacing="trailing")
        known = inspect.signature(scheduler.set_timesteps).parameters
        passed = {key: value for key, value in (self.further(steps) if self.further else {}).items() if key in known}
        try:
            scheduler.set_timesteps(steps, **passed)
        except Exception as error:  # of diffusers' own code: they share no class
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{name} cannot place {steps} steps: {reason}") from None
        if not hasattr(scheduler, "sigmas"):  # whole steps; PNDM's list of them includes its stages as well
            whole = scheduler._timesteps[::-1] if name == "PNDMScheduler" else scheduler.timesteps.tolist()
            clean = CLEAN_END.get(name, bool(scheduler.config.get("set_alpha_to_one", name != "PNDMScheduler")))
            return [float(t) for t in whole], process.t_zero if clean else process.t_min
        # Second-order schedulers list a noise level once for each of its stages.
        sigmas = _distinct(scheduler.sigmas.tolist())
        if self.schedule.kind == "table":
            times = _table_times(process, sigmas, name)
        else:
            times = [_edge(process, sigma) for sigma in sigmas]
        return (times if len(times) == steps else times[:-1]), times[-1]


def keys(kind: type) -> list[str]:
    """The keys of its configuration that a scheduler class reads; diffusers ignores others, and keeps them."""
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")]  # type: ignore[misc]


def _edge(process: Process, level: float) -> float:
    """A noise level in float32 as a time: the process's ends are hit exactly."""
    return next((t for t in (process.t_min, process.t_max) if abs(level / t - 1) < 1e-6), level)


def _distinct(values: list[float]) -> list[float]:
    return [value for i, value in enumerate(values) if i == 0 or value != values[i - 1]]


def _table_times(process: Process, sigmas: list[float], name: str) -> list[float]:
    """The times at which sigma / alpha has these values: whole steps where they are some up to float32's rounding.

    Raises:
        ValueError: a noise level beyond the table, where diffusers would give the network a time of another level.
    """
    levels = torch.tensor([sigma for sigma in sigmas if sigma > 0], dtype=torch.float64)
    t = process.time(-levels.log())
    outside = (t > process.t_max + 0.05) | (t < process.t_min - 0.05)
    if bool(outside.any()):
        low, high = (math.exp(-process.log_snr(end)) for end in (process.t_min, process.t_max))
        raise ValueError(
            f"{name} has the noise level {float(levels[outside][0]):.4g} outside its table, {low:.4g} to {high:.4g}:"
            " check sigma_min and sigma_max"
        )
    t = t.clamp(max=process.t_max)
    whole = t.round()
    off = (process.log_snr(whole) + levels.log()).abs()
    close = ((off < 1e-3) | ~off.isfinite()) & ((t - whole).abs() < 0.05)
    found = iter(torch.where(close, whole, t).tolist())
    return [next(found) if sigma > 0 else process.t_zero for sigma in sigmas]


def _scheduler(name: str, config: Mapping[str, Any]) -> Any:
    import diffusers

    # PNDM's Runge-Kutta stages do not move its steps, but a grid of fewer than four has no room for them.
    further = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    return getattr(diffusers, name).from_config(dict(config), **further)


def open_schedule(scheduler: Any) -> Schedule:
    """The schedule of a diffusers scheduler, or of its configuration (a mapping with `_class_name`).

    Only the keys that its class reads count, as in diffusers: those of another class, which a scheduler keeps that was
    made `from_config`, do nothing.

    Raises:
        ValueError: a scheduler of another class, a value that is not known here or that cannot be applied.
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
    except Exception as error:  # of diffusers' own code: they share no class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the configuration of {name} cannot be used: {reason}") from None
    config = {key: made.config[key] for key in keys(type(made))}
    _check(name, config)
    steps = int(config["num_train_timesteps"])
    threshold = None
    if name in THRESHOLDS and config["thresholding"] and config.get("predict_x0", True):
        threshold = float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])
    if name in NOISE_LEVELS:
        consistent = name == "CMStochasticIterativeScheduler"
        process: Process = EDM(float(config["sigma_min"]), float(config["sigma_max"]))
        predicts = "x0" if consistent else _predicts(config)
        clip = 1.0 if config.get("clip_denoised") else None
        kind = "consistency" if consistent else "edm"
        return Schedule(process, predicts, kind, name, made, steps, float(config["sigma_data"]), clip, threshold)
    if name in FLOWS or config.get("use_flow_sigmas"):
        predicts = "flow" if name in FLOWS else _predicts(config)
        return Schedule(Flow(), predicts, "flow", name, made, steps, threshold=threshold)
    table = _falling(made.alphas_cumprod.double().tolist())
    if len(table) != steps:
        raise ValueError(f"{name} has {len(table)} trained_betas, but num_train_timesteps is {steps}")
    clip = float(config["clip_sample_range"]) if name in CLIPS and config["clip_sample"] and not threshold else None
    boundary = float(config["timestep_scaling"]) if name == "LCMScheduler" else None
    process = Discrete(table)
    return Schedule(
        process, _predicts(config), "table", name, made, steps, clip=clip, threshold=threshold, boundary=boundary
    )


def _predicts(config: Mapping[str, Any]) -> str:
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTS:
        raise suggest("prediction_type", kind, PREDICTS)
    return PREDICTS[kind]


def _falling(table: list[float]) -> tuple[float, ...]:
    """A table that falls, from one whose last step alone is too high.

    Under zero terminal SNR, Euler, UniPC and DPM-Solver++ put 2^-24 there in place of 0, which may be above the steps
    before it. Those are lifted, geometrically: few grids evaluate there, and all noise levels near are pure noise.
    """
    above = next(k for k in range(len(table) - 1, -1, -1) if k == 0 or table[k - 1] > table[-1])
    count = len(table) - above  # steps from the first that is too low to the last
    if table[-1] != 2.0**-24 or count < 2 or above == 0:
        return tuple(table)
    high, low = math.log(table[above - 1]), math.log(table[-1])
    return (*table[:above], *(math.exp(high + (low - high) * (k + 1) / count) for k in range(count - 1)), table[-1])


def _check(name: str, config: Mapping[str, Any]) -> None:
    """`ValueError` for values of keys that would give other pictures than diffusers gives."""
    flow, kind = bool(config.get("use_flow_sigmas")), config.get("prediction_type")
    spacing = next((key for key in SPACINGS if config.get(key)), None)
    wrong = None
    if config.get("interpolation_type", "linear") == "log_linear" and spacing is None:
        wrong = (
            "interpolation_type 'log_linear' gives the network the times of other noise levels than it steps through"
        )
    elif config.get("timestep_type", "discrete") != "discrete" and kind == "v_prediction":
        wrong = f"timestep_type {config['timestep_type']!r} calls the network at a quarter of log sigma, not at a step"
    elif config.get("invert_sigmas"):
        wrong = "invert_sigmas runs from data to noise"
    elif config.get("scale_factors"):
        wrong = "scale_factors change the size of the sample on the way"
    elif flow and spacing is not None and (name, spacing) != ("UniPCMultistepScheduler", "use_karras_sigmas"):
        wrong = f"{spacing} takes noise levels of the table for a flow's (use_flow_sigmas)"
    elif flow and kind == "v_prediction":
        wrong = "prediction_type 'v_prediction' has no meaning for a flow (use_flow_sigmas)"
    elif not flow and kind == "flow_prediction":
        wrong = "prediction_type 'flow_prediction' needs a flow (use_flow_sigmas)"
    elif name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler") and kind == "sample":
        wrong = "prediction_type 'sample' has no place in EDM's preconditioning"
    elif config.get("thresholding") and not 0 <= float(config["dynamic_thresholding_ratio"]) <= 1:
        wrong = f"dynamic_thresholding_ratio {config['dynamic_thresholding_ratio']} is no quantile between 0 and 1"
    if wrong is not None:
        raise ValueError(f"{name} is not supported here: {wrong}")
