"""MeanFlow: a map learns its mean velocity from the derivative of itself along the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.distillation.maps import Condition, Maps, adaptive, check_shares, pairs
from fewstep.distillation.method import Batch, Setting
from fewstep.networks.blocks import blocks_of

METHODS = (
    Method(
        "mean-flow",
        paper="Mean Flows for One-step Generative Modeling (Geng et al., 2025)",
        arxiv="2505.13447",
        claim="a map between any two times from one network and its derivative along the flow, data or none",
        use="MeanFlow",
        facts={"student": "map", "data": False, "pairing": True, "players": ("student",), "steps": "any"},
    ),
    Method(
        "dmf",
        paper="Decoupled MeanFlow: Turning Flow Models into Flow Maps for Accelerated Sampling (Lee et al., 2025)",
        arxiv="2510.24474",
        claim="a trained network becomes a map with no new weight: its late blocks read the time to go to",
        use="DecoupledMeanFlow",
        facts={"student": "map", "data": False, "pairing": True, "players": ("student",), "steps": "any"},
    ),
)

VELOCITIES = ("teacher", "data")
HIDDEN = 0.1  # share of hidden conditions where the guidance is the student's own


class MeanVelocity(Maps):
    """MeanFlow's identity for every process: in the flow's clock (`fewstep.distillation.maps`) the mean velocity

        u(y, r_t, r_s) = 1 / (r_t - r_s) integral of v over the way,    so    u = v - (r_t - r_s) du / dr,

    the derivative being total, along the flow, with s fixed (Geng et al., eq. 6). The right hand side, without a
    gradient, is what u is to be.

    Args:
        power, c: of the weight `(|e|^2 + c)^-p` of each sample. states, tangent, late: `Maps`.

    Raises:
        ValueError: a power below 0, a c that is not positive, and what `Maps` raises.
    """

    def __init__(
        self, setting: Setting, power: float, c: float, states: str | None, tangent: str, late: int = 0
    ) -> None:
        if power < 0 or not c > 0:
            raise ValueError(f"power must be at least 0 and c positive, got {power} and {c}")
        self.power, self.c = power, c
        super().__init__(setting, states, tangent, late)

    def identity(self, x: Tensor, t: Tensor, s: Tensor, v: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """u, with its gradient, and `v - (r_t - r_s) du / dr`, for states x (B, *shape), times (B,), velocities v."""
        u, slope = self.along(x, t, s, v, condition)
        return u, v - self.way(t, s, x) * slope

    def loss(self, x: Tensor, t: Tensor, s: Tensor, v: Tensor, condition: Condition) -> Tensor:
        """The loss (B,) of the identity."""
        u, goal = self.identity(x, t, s, v, condition)
        return adaptive(u - goal, self.power, self.c)

    def flow_loss(self, x: Tensor, t: Tensor, v: Tensor, condition: Condition) -> Tensor:
        """The loss (B,) of the velocity: of u at s = t."""
        return adaptive(self.mean_velocity(x, t, t, condition) - v, self.power, self.c)


class Guided(MeanVelocity):
    """What the two methods of MeanFlow draw, and where their velocities come from.

    Args:
        same: share of the pairs with s = t. clean: share of those where s is the clean end: logit-normal draws never
            reach it, and networks that see log-SNR do not continue to it as those that see r do.
        velocity: "teacher" is the teacher's v, "data" the paper's `eps - x0` of a noised sample, without a teacher.
        guidance: scale of classifier-free guidance inside v, `w v + (1 - w) v_empty`: of the teacher's velocities, or
            of the student's own at s = t (section 4.2), with a tenth of the conditions hidden. Where the teacher is
            guided already, its velocities are, and this stays 1.

    Raises:
        ValueError: shares above 1, an unknown name, guidance of a student without conditions.
    """

    def __init__(
        self, setting: Setting, same: float, clean: float, velocity: str, guidance: float, power: float, c: float,
        states: str | None, tangent: str, late: int = 0,
    ) -> None:  # fmt: skip
        check_shares(same=same, clean=clean)
        if velocity not in VELOCITIES:
            raise suggest("velocity", velocity, VELOCITIES)
        self.own = velocity == "data"
        super().__init__(setting, power, c, "data" if self.own else states, tangent, late)
        if guidance != 1 and not set(self.student.conditions) - {"to"}:
            raise ValueError(f"a model without conditions takes no guidance, got {guidance:g}")
        if guidance != 1 and self.own:
            setting.hidden = setting.hidden or HIDDEN
        self.same, self.clean, self.guidance = same, clean, guidance

    def draw_pairs(self, batch: int, generator: torch.Generator) -> Batch:
        """States, conditions and pairs of times."""
        t, s = pairs(self.setting, batch, generator, self.same, self.clean)
        return {**self.draw_states(batch, generator), "t": t, "s": s}

    @torch.no_grad()
    def velocities(self, x: Tensor, t: Tensor, drawn: Batch) -> Tensor:
        """v (B, *shape) at states, with the guidance inside."""
        condition = drawn["condition"]
        v = drawn["eps"] - drawn["x0"] if self.own else self.velocity(x, t, condition)
        if self.guidance == 1:
            return v
        model = self.f if self.own else self.setting.teacher
        empty = {name: value for name, value in model.check_condition({}, len(x), x.device).items() if name != "to"}
        return self.guidance * v + (1 - self.guidance) * model(x, t, **empty).to("flow")

    def pairs_loss(self, drawn: Batch) -> Tensor:
        """The loss (B,) of the identity at what was drawn."""
        x = self.states_at(drawn, drawn["t"])
        return self.loss(x, drawn["t"], drawn["s"], self.velocities(x, drawn["t"], drawn), drawn["condition"])


class MeanFlow(Guided):
    """MeanFlow (Algorithm 1), of a teacher's velocities or of data alone.

    It leaves the paper in three things: the target's input begins as an addition to a trained network's embedding; a
    part of the pairs goes to the clean end; and v is by default the teacher's, which is the mean of the paper's
    `eps - x0` and has no noise.

    Args:
        same, clean, velocity, guidance: `Guided`. power, c: of the weight. states, tangent: `Maps`.
    """

    def __init__(
        self, setting: Setting, same: float = 0.25, clean: float = 0.25, velocity: str = "teacher",
        guidance: float = 1.0, power: float = 1.0, c: float = 1e-3, states: str | None = None, tangent: str = "jvp",
    ) -> None:  # fmt: skip
        super().__init__(setting, same, clean, velocity, guidance, power, c, states, tangent)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return self.draw_pairs(batch, generator)

    def _loss(self, drawn: Batch) -> Tensor:
        return self.pairs_loss(drawn)


class DecoupledMeanFlow(Guided):
    """The teacher's own weights as a map: the last blocks read the target in place of the time, and MeanFlow's loss and
    the flow's are learnt at once, each in a batch of its own (Lee et al., section 4).

    At s = t the converted network is the teacher bit for bit; without training it is a rough map already, which decodes
    for s what it has encoded at t. The paper's loss of the flow is on data, here v is by default the teacher's.

    Args:
        late: how many blocks read the target, by default a third of them. others: as `MeanFlow`, without pairs of s = t
            since these are the second batch.

    Raises:
        ValueError: a network without blocks, more late ones than it has.
    """

    def __init__(
        self, setting: Setting, late: int | None = None, clean: float = 0.25, velocity: str = "teacher",
        guidance: float = 1.0, power: float = 1.0, c: float = 1e-3, states: str | None = None, tangent: str = "jvp",
    ) -> None:  # fmt: skip
        if setting.own:
            late = 0  # it is given, with the blocks that it has
        elif late is None:
            late = max(1, len(blocks_of(setting.base)) // 3)
        elif late < 1:
            raise ValueError(f"late must be at least 1 block, got {late}")
        super().__init__(setting, 0.0, clean, velocity, guidance, power, c, states, tangent, late)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        second = self.draw_states(batch, generator)
        second["t"], _ = pairs(self.setting, batch, generator, 1.0, 0.0)
        return self.draw_pairs(batch, generator) | {"second": second}

    def _loss(self, drawn: Batch) -> Tensor:
        second = drawn["second"]
        x, t = self.states_at(second, second["t"]), second["t"]
        flow = self.flow_loss(x, t, self.velocities(x, t, second), second["condition"])
        return self.pairs_loss(drawn) + flow
