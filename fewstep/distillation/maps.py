"""What the methods of flow maps share: states, pairs of times, and the flow's clock, in which a map is a mean velocity.

Every process is the rectified flow in another clock and scale. With the noise's share and the state's size

    r = sigma / (alpha + sigma)  in [0, 1],      y = x / (alpha + sigma) = (1 - r) x0 + r eps,

the ODE is `dy / dr = v = eps - x0` with the x0 and eps of the denoiser's answer at (x, t) (its kind "flow"), and DDIM's
step from t to s, `J(x, t, s; g)`, is `y_s = y - (r_t - r_s) u` with `u = (y - g) / r_t`: a map's answer g is in this
kind the mean velocity u from s to t, and v at s = t. So u is learnt for every process as MeanFlow learns it for one.
Derivatives along the flow need no inverse of the clock: with `r' = (alpha sigma' - sigma alpha') / (alpha + sigma)^2`,

    dt / dr = 1 / r',      dx / dr = (alpha' + sigma') / ((alpha + sigma) r') x + (alpha + sigma) v,

finite at pure noise too (alpha = 0, r = 1). States are taken at `t_min` and above; at the clean end r and sigma are 0.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.prediction import expand, scales
from fewstep.core.process import Process
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.pairs import draw_states, drawn_from, kept_masks, noisy
from fewstep.distillation.tangent import MODES, tangent
from fewstep.distillation.teacher import BACKWARD, FORWARD, jump

STEP = 1e-3  # of central differences, in r
MEAN, DEVIATION = -0.4, 1.0  # of the logit-normal times (MeanFlow, table 1d)

Condition = Mapping[str, Any]


def noise_share(process: Process, t: Tensor) -> Tensor:
    """`r = sigma / (alpha + sigma)` of times, float64."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (alpha + sigma)


def rate(process: Process, t: Tensor) -> Tensor:
    """`dr / dt` of times, float64."""
    alpha, sigma, dalpha, dsigma = scales(process, t)
    return (alpha * dsigma - sigma * dalpha) / (alpha + sigma).square()


def at_noise_share(process: Process, r: Tensor, start: float) -> Tensor:
    """The times at which the noise has the share r, cut to `t_min` and the start."""
    ends = torch.tensor([process.t_min, start], dtype=torch.float64, device=r.device)
    least, most = noise_share(process, ends)
    inside = r.double().clamp(least, most * (1 - 1e-9))  # the start's own log-SNR may be infinite
    return torch.where(r >= most, ends[1], process.time(torch.log1p(-inside) - inside.log()))


def pairs(setting: Setting, batch: int, generator: torch.Generator, same: float, clean: float) -> tuple[Tensor, Tensor]:
    """Times t and s <= t, (batch,) float64: the larger and the smaller of two whose r is logit-normal.

    same: share of the rows where s is t. clean: share of them where it is the clean end, which no such draw reaches.
    """
    two = torch.randn((2, batch), generator=generator, dtype=torch.float64)
    chance = setting.uniform(batch, generator)
    r = torch.sigmoid(MEAN + DEVIATION * two)
    t, s = (at_noise_share(setting.process, part, setting.start) for part in (r.amax(0), r.amin(0)))
    s = torch.where(chance < same, t, s)
    return t, torch.where((chance >= same) & (chance < same + clean), setting.process.t_zero, s)


def check_shares(**shares: float) -> None:
    """`ValueError` for shares outside [0, 1], or of more than 1 in all."""
    if min(shares.values()) < 0 or sum(shares.values()) > 1:
        raise ValueError(f"{', '.join(shares)} must be shares of at most 1 in all, got {list(shares.values())}")


class Maps(Distiller):
    """A student with two times, its states, and its velocities in the flow's clock.

    Args:
        states: where training states come from, "data" or "teacher" (`fewstep.distillation.pairs`).
        tangent: "jvp" or "difference" (`fewstep.distillation.tangent`).
        late: how many of the network's last blocks read the target with the teacher's own weights; 0 for a new input.

    Raises:
        ValueError: an unknown name, data that are not known.
    """

    kind = "map"

    def __init__(self, setting: Setting, states: str | None = None, tangent: str = "jvp", late: int = 0) -> None:
        if tangent not in MODES:
            raise suggest("tangent", tangent, MODES)
        self.setting, self.states, self.mode = setting, drawn_from(setting, states), tangent
        self.student = setting.student(target=1, late=late)
        self.f = setting.counted(self.student)
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    @abc.abstractmethod
    def _loss(self, drawn: Batch) -> Tensor:
        """The student's loss (B,)."""

    # States

    def draw_states(self, batch: int, generator: torch.Generator) -> Batch:
        """What states are made of: data "x0" and noise "eps", or pure noise "z"; and their conditions."""
        drawn = draw_states(self.setting, self.states, batch, generator)
        drawn["condition"].pop("to", None)  # of a student that is a map already
        return drawn

    def states_at(self, drawn: Batch, t: Tensor) -> Tensor:
        """States (B, *shape) at times t (B,)."""
        return noisy(self.setting, drawn | {"t": t})

    # The student and the teacher

    def landed(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """`G(x, t, s)`: where the student goes from t to s."""
        return jump(self.setting.process, x, t, s, self.f(x, t, to=s, **condition).x0)

    def still(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """G with weights that get no gradient, while x may have one; x itself where it is clean."""
        process = self.setting.process
        weights = {name: value.detach() for name, value in self.student.named_parameters()}
        inside = t.clamp(min=process.t_min)
        answer = torch.func.functional_call(self.student, weights, (x, inside), {"to": s, **condition})
        self.setting.count.evaluations += len(x) * (BACKWARD if answer.value.requires_grad else FORWARD)
        clean = expand((t == process.t_zero).to(x.dtype), x) > 0
        return torch.where(clean, x, jump(process, x, inside, s, answer.x0))

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The teacher's v."""
        return self.setting.teacher(x, t, **condition).to("flow")

    def mean_velocity(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """The student's u."""
        return self.f(x, t, to=s, **condition).to("flow")

    def way(self, t: Tensor, s: Tensor, like: Tensor) -> Tensor:
        """`r_t - r_s`, shaped to multiply states."""
        process = self.setting.process
        return expand(noise_share(process, t) - noise_share(process, s), like)

    def along(self, x: Tensor, t: Tensor, s: Tensor, v: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """u and its derivative `du / dr` along the velocity v with s fixed, which has no gradient."""
        alpha, sigma, dalpha, dsigma = scales(self.setting.process, t)
        size, slope = alpha + sigma, rate(self.setting.process, t)
        directions = expand((dalpha + dsigma) / (size * slope), x) * x + expand(size, x) * v, 1 / slope
        return self.derivative(
            lambda x, t: self.mean_velocity(x, t, s, condition),
            (x, t),
            directions,
            noise_share(self.setting.process, t),
        )

    def derivative(
        self, function: Any, inputs: tuple[Tensor, ...], directions: tuple[Tensor, ...], r: Tensor, keep: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`tangent` by r, whose differences stay within its clock: the function is of x and t, or of s; r is theirs."""

        def masked(*at: Tensor) -> Tensor:
            with kept_masks(self.setting.device):
                return function(*at)  # type: ignore[no-any-return]

        if self.mode == "jvp":
            count = self.setting.count
            spent = count.evaluations + len(r) * (BACKWARD + (BACKWARD if keep else FORWARD))
            found = tangent(masked, inputs, directions, keep=keep)
            count.evaluations = spent  # not what the calls within said, which cannot see whether there is a gradient
            return found
        # Half way to the ends of the clock at most; at pure noise itself beyond it, which networks can be asked for.
        near = torch.minimum(r, torch.where(r < 1, 1 - r, 1.0)) / (2 * STEP)
        share = near.clamp(max=1.0)
        short = tuple(expand(share, part) * part for part in directions)
        value, slope = tangent(masked, inputs, short, "difference", h=STEP, keep=keep)
        return value, slope / expand(share, slope)


def adaptive(error: Tensor, power: float, c: float) -> Tensor:
    """`|e|^2 (|e|^2 + c)^-p` (B,) with the weight a constant (MeanFlow, section 4.3; p = 1/2 is near to the
    pseudo-Huber distance)."""
    total = error.square().flatten(1).sum(1)
    return total * (total.detach() + c) ** -power
