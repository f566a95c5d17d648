"""The diffusers scheduler that carries a plan. Import it by `Plan.as_diffusers_scheduler`: diffusers takes seconds.

diffusers finds a component of another library only in a module that is imported already: write
`import fewstep.hub.plan_scheduler` before `from_pretrained` of a pipeline that was saved with a plan in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.ops import one_level
from fewstep.core.plan import Plan
from fewstep.core.prediction import expand
from fewstep.core.process import process_from_config
from fewstep.core.program import Rows
from fewstep.core.table import Table
from fewstep.hub.replanned import later, recompiled
from fewstep.hub.schedules import FLOWS, keys
from fewstep.processes.discrete import Discrete

KINDS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass
class PlanSchedulerOutput(BaseOutput):
    """`prev_sample` `(B, *shape)` is the network's next input, `pred_original_sample` the clean sample it implies."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A fewstep plan with the methods that diffusers pipelines call.

    The plan fixes the times: `set_timesteps(n)` takes its number of steps or of evaluations, and the pipeline calls
    the network once for each of `timesteps`, in the network's units. Another n compiles the plan's solver anew, where
    the plan names its solver and rule; a learned plan has one n. The state is `alpha x0 + sigma eps`, kept in
    float32 (float64 for a float64 sample); a pipeline whose noise is not multiplied by `init_noise_sigma` (DDIM, DDPM,
    DiT) starts from noise of variance 1, as it does with every scheduler.

    Its configuration has what other classes read, so that `from_config` makes one with the same noise levels: the table
    as `trained_betas`, or the flow.

    What a plan cannot do: take other timesteps or sigmas than its own; begin inside a step, or anywhere but at its
    start if it is learned; take eta, which its solver has settled.

    Args:
        plan: its JSON, `Plan.to_json()`.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        num_train_timesteps: steps of the table, or the scale of a flow's time.

    Attributes:
        order: timesteps for each of the `num_inference_steps`, less one for the last (2 for Heun's method, set by its
            steps).
        sigmas: `(nfe + 1,)` noise levels sigma / alpha of the evaluations and the end; of a flow, its sigma.
    """

    order = 1
    _compatibles = [each.name for each in KarrasDiffusionSchedulers]
    sigmas: Tensor

    @register_to_config
    def __init__(self, plan: str, prediction_type: str = "epsilon", num_train_timesteps: int = 1000):
        if prediction_type not in KINDS:
            raise suggest("prediction type", prediction_type, KINDS)
        self.held = Plan.from_json(plan)
        self.process = process_from_config(dict(self.held.process))
        self.kind = KINDS[prediction_type]
        # The unit of the network's time, in that of the process.
        self.scale = 1 if isinstance(self.process, Discrete) else num_train_timesteps
        if isinstance(self.process, Discrete):
            table = torch.tensor(self.process.alphas_cumprod, dtype=torch.float64)
            betas = 1 - table / torch.cat([table.new_ones(1), table[:-1]])
            self.betas, self.alphas, self.alphas_cumprod = betas.float(), (1 - betas).float(), table.float()
            others: dict[str, Any] = {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": float(table[-1]) == 0}
            self.register_to_config(**others, clip_sample=False, thresholding=False)
        else:
            self.register_to_config(use_flow_sigmas=True)
        self.register_to_config(_use_default_values=[])  # those that diffusers leaves out when it makes another class
        self.num_inference_steps: int | None = None
        self.set_timesteps(self.held.nfe)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    @property
    def compatibles(self) -> list[type]:
        """The classes of diffusers that `from_config` can make of this configuration."""
        flow = not isinstance(self.process, Discrete)
        reads = "use_flow_sigmas" if flow else "trained_betas"
        others = [kind for kind in super().compatibles if reads in keys(kind)]
        return [getattr(diffusers, name) for name in FLOWS] + others if flow else others

    @property
    def step_index(self) -> int | None:
        """The number of evaluations made, or None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        return self._begin

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
    ) -> None:
        """Begin a run: `timesteps` `(nfe,)` float32.

        Args:
            num_inference_steps: the plan's steps or evaluations, or another number of steps (`recompiled`).
            sigmas, timesteps: what some pipelines pass: only the plan's own, or the plain equal steps
                `1, 1 - 1/n, ...` that flow pipelines always pass and expect the scheduler to replace.
            mu: a flow pipeline's shift for its picture size; the plan includes its shift already, so this is ignored.
            original_inference_steps: the grid that a pipeline of latent consistency picks its steps from, likewise.

        Raises:
            ValueError: times other than the plan's, or a number of steps for which it cannot be compiled.
        """
        given = next((len(values) for values in (timesteps, sigmas) if values is not None), num_inference_steps)
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise ValueError(f"num_inference_steps must be a whole number of at least 1, got {num_inference_steps!r}")
        plain = [1 - k / given for k in range(given)]
        if sigmas is not None and given == self.held.nfe + 1 and float(sigmas[-1]) == self.sigmas[-1]:
            given = self.held.nfe  # with the end
        plan = self.held if given in (len(self.held.times) - 1, self.held.nfe) else recompiled(self.held, given)
        made = torch.tensor([op.t for op in plan.evaluations], dtype=torch.float32, device=device) * self.scale
        flow = not isinstance(self.process, Discrete)
        levels = [_level(*op.scales[:2], flow) for op in plan.evaluations]
        end = _level(self.process.alpha(plan.times[-1]), self.process.sigma(plan.times[-1]), flow)
        if timesteps is not None and not _close(timesteps, made.tolist()):
            raise ValueError("the plan holds its own timesteps, and cannot take others: leave timesteps out")
        if sigmas is not None and not any(_close(sigmas, own) for own in (levels, [*levels, end], plain)):
            raise ValueError("the plan holds its own sigmas, and cannot take others: leave sigmas out")
        steps, each = len(plan.times) - 1, -(-plan.nfe // (len(plan.times) - 1))
        self.order = each if given == steps and plan.nfe in (each * steps, each * steps - each + 1) else 1
        self.plan, self.num_inference_steps, self.timesteps = plan, given, made
        self.sigmas = torch.tensor([*levels, end], device=device)
        self.init_noise_sigma = _first(plan.table)[1] * one_level(plan.start[1])
        self._index: int | None = None
        self._begin: int | None = None
        self._table: Table = plan.table
        self._rows: _Rows | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at an evaluation, as image-to-image does, which leaves out the first ones.

        Raises:
            ValueError: a plan that cannot be rebuilt on its later times (see `later`).
        """
        self._begin, self._index, self._rows = begin_index, None, None
        self._table = (later(self.plan, begin_index) if begin_index else self.plan).table

    def index_for_timestep(self, timestep: Any) -> int:
        """The evaluation at this timestep: of a time that occurs twice, the one that begins a step.

        Raises:
            ValueError: none of the plan's timesteps.
        """
        off = [abs(t - float(timestep)) for t in self.timesteps.tolist()]
        if not min(off) <= 0.5:  # some pipelines pass whole numbers
            raise ValueError(f"the plan has no evaluation at timestep {float(timestep):g}: take one of `timesteps`")
        return max(k for k, one in enumerate(off) if one == min(off))

    def previous_timestep(self, timestep: Any) -> float:
        """The timestep after this one in a run, at the next lower noise; after the last, that of the plan's end."""
        index = self.index_for_timestep(timestep) + 1
        return float(self.timesteps[index]) if index < len(self.timesteps) else self.plan.times[-1] * self.scale

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: the network takes the state."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha x0 + sigma noise` `(B, *shape)` at times `(B,)` or `(1,)` in the network's units."""
        t = timesteps.to(original_samples.device, torch.float64) / self.scale
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        state = torch.promote_types(original_samples.dtype, torch.float32)
        x0, eps = original_samples.to(state), noise.to(original_samples.device, state)
        return (expand(alpha, x0) * x0 + expand(sigma, x0) * eps).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha noise - sigma x0` `(B, *shape)` at times `(B,)` in the network's units; of a flow, `noise - x0`."""
        if not isinstance(self.process, Discrete):
            return noise - sample
        t = timesteps.to(sample.device, torch.float64) / self.scale
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return expand(alpha, sample) * noise - expand(sigma, sample) * sample

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, as flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> PlanSchedulerOutput | tuple[Tensor, Tensor]:
        """One evaluation further: the network's answer at `sample` `(B, *shape)` gives its next input or the result.
        Beside it stands the clean sample that the answer implies; at the end that is the result, which pipelines of
        latent consistency decode.

        A `sample` that differs from what the last call returned is used: the other states that the solver keeps are
        moved along, by the least change of the states before that would have led to it.

        Args:
            timestep: at a run's first call, where it begins if `set_begin_index` has not said so: one of `timesteps`.
                Afterwards the plan counts its evaluations.
            generator: of the noise of stochastic plans, one for all or one per sample.
            eta, use_clipped_model_output: DDIMPipeline's; the plan has its own noise, and only the defaults are
                accepted.

        Raises:
            ValueError: a step after the last, an answer or a sample of another shape, eta.
        """
        if eta or use_clipped_model_output:
            raise ValueError("eta and use_clipped_model_output are DDIMScheduler's: this plan holds its own noise")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"the network's answer has shape {tuple(model_output.shape)}, the sample {tuple(sample.shape)}"
            )
        if self._rows is None:
            if self._begin is None and float(timestep) != float(self.timesteps[0]):
                self.set_begin_index(self.index_for_timestep(timestep))
            self._index = self._begin or 0
            self._rows = _Rows(self._table, self.kind, sample)
        assert self._index is not None
        if self._index == len(self.timesteps):
            raise ValueError(f"all {len(self.timesteps)} evaluations of the plan are made: call set_timesteps first")
        self._index += 1
        clean = None if self._index == len(self.timesteps) else self._rows.clean(model_output, sample)
        previous = self._rows.advance(model_output, sample, generator)
        clean = previous if clean is None else clean
        return PlanSchedulerOutput(previous, clean) if return_dict else (previous, clean)


def _level(alpha: Any, sigma: Any, flow: bool) -> float:
    """A noise level as schedulers list it: sigma / alpha, and sigma of a flow."""
    return one_level(sigma) if flow else one_level(sigma) / max(one_level(alpha), 2.0**-12)


def _close(values: Sequence[float], own: Sequence[float]) -> bool:
    return len(values) == len(own) and all(
        math.isclose(float(a), b, rel_tol=1e-4, abs_tol=1e-6) for a, b in zip(values, own, strict=True)
    )


def _first(table: Table) -> tuple[tuple[float, ...], float]:
    """What is known when the network is first called: the states as multiples of its input, and the noise in that
    input as a multiple of the run's first.

    Noise added before that is merged into the noise that a run starts from: a pipeline has no place between the two.
    """
    stage = table.stages[0]
    if stage.evaluate is not None:
        return (1.0,), 1.0
    weights = [[one_level(c) for c in row] for row in stage.weights]
    fed = weights[table.stages[1].x]
    noise = math.hypot(fed[0], *fed[table.states :])
    if len(stage.weights) > 1 and (stage.draws or fed[0] == 0):
        raise ValueError("the plan adds noise to one of two states before its first evaluation: a pipeline has but one")
    return tuple(row[0] / fed[0] for row in weights) if len(weights) > 1 else (1.0,), noise


class _Rows:
    """A run, `fewstep.core.run.Rows`, whose network is called by a pipeline: it may change the state between calls."""

    def __init__(self, table: Table, kind: str, sample: Tensor):
        self.table, self.kind = table, kind
        self.rows = Rows(table, sample, torch.float64 if sample.dtype == torch.float64 else torch.float32)
        self.rows.bind(kind)
        self.rows.go_to(0 if table.stages[0].evaluate is not None else 1)
        self.given: Tensor | None = None
        for state, factor in zip(self.rows.state[self.rows.i & 1], _first(table)[0], strict=False):
            state.copy_(sample).mul_(factor)

    def clean(self, value: Tensor, sample: Tensor) -> Tensor:
        """The clean sample that the answer implies."""
        p, q = (one_level(number) for number in self.table.stages[self.rows.i].convert(self.kind, "x0"))
        return (p * sample.to(self.rows.dtype) + q * value.to(self.rows.dtype)).to(sample.dtype)

    def advance(self, value: Tensor, sample: Tensor, generator: Any) -> Tensor:
        """Take the network's answer at `sample`, and return its next input or the result."""

        def draw(number: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
            return randn_tensor(shape, generator, device, dtype)

        if self.given is not None and not self._unchanged(sample):
            self._move(sample)
        self.rows.advance(value.to(self.rows.dtype), self.kind, draw)
        self.given = self.rows.fed.to(sample.dtype, copy=True)
        self.version = 0 if self.given.is_inference() else self.given._version
        return self.given

    def _unchanged(self, sample: Tensor) -> bool:
        """Whether this is the tensor that the last call returned, not written to since."""
        return sample is self.given and not sample.is_inference() and sample._version == self.version

    def _move(self, sample: Tensor) -> None:
        """Put the sample in the place of the state that the network saw, and take the kept states along.

        The combinations before gave `x = w . s` and the kept `k = u . s`, of the states s before them. The least change
        of s that moves x by d is `w d / |w|^2`, and moves k by `(u . w) / |w|^2 d`.
        """
        if sample.shape != self.rows.shape:
            raise ValueError(
                f"the sample has shape {tuple(sample.shape)}, that of the first step {tuple(self.rows.shape)}"
            )
        fed, states = self.table.stages[self.rows.i].x, self.rows.state[self.rows.i & 1]
        rows = self._dependence()
        norm = math.fsum(c * c for c in rows[fed])
        if len(rows) > 1 and norm > 0:
            change = sample.to(self.rows.dtype) - states[fed]
            for k, row in enumerate(rows):
                factor = math.fsum(a * b for a, b in zip(row, rows[fed], strict=True)) / norm
                if k != fed and factor:
                    states[k].add_(change, alpha=factor)
        states[fed].copy_(sample)

    def _dependence(self) -> list[list[float]]:
        """How the present states depend on those one evaluation before, with the network's answer there held fixed.

        It is held in the kind that the solver uses next: the solver may use eps and x0 of one evaluation in turn.
        """
        before, outputs = self.table.stages[self.rows.i - 1], self.table.stages[self.rows.i].outputs
        r = self.table.states
        rows = [[one_level(c) for c in row[:r]] for row in before.weights]
        if before.evaluate is not None and outputs and min(map(one_level, before.evaluate.scales[:2])) > 0:
            for kind, slot in before.outputs:
                p = one_level(before.convert(outputs[0][0], kind)[0])
                for row, weights in zip(rows, before.weights, strict=True):
                    row[before.x] += p * one_level(weights[r + slot])
        return rows
