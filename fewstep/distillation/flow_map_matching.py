"""Flow map matching: three equations that hold for a flow map alone, each a way to learn one from its velocity."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.distillation.distances import squared
from fewstep.distillation.maps import Condition, Maps, at_noise_share, check_shares, noise_share, pairs, rate
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.teacher import jump

METHODS = (
    Method(
        "flow-map",
        paper="Flow Map Matching (Boffi et al., 2024)",
        arxiv="2406.07507",
        claim="where a map ends moves as the teacher says: learnt without derivatives along the state",
        use="FlowMapMatching",
        facts={"student": "map", "data": False, "pairing": True, "players": ("student",), "steps": "any"},
    ),
)

RULES = ("lagrangian", "eulerian", "semigroup")


class FlowMapMatching(Maps):
    """A map `Y(y, r_t, r_s) = y - (r_t - r_s) u` in the flow's clock (`fewstep.distillation.maps`), by one of:

    - "lagrangian": `|d Y / d r_s - v(Y, r_s)|^2`, whose derivative is in one number a sample, and has its gradient
      (Boffi et al., proposition 3.6). s is `t_min` at least, where the teacher can be asked.
    - "eulerian": `d Y / d r_t + (dY / dy) v = 0` (proposition 3.7): MeanFlow's identity written for Y, which a step
      down its own residual, without a gradient, is to follow. In full, as in the paper, it would need second
      derivatives along the state. It learns more slowly than the other two.
    - "semigroup": one jump is two of half the length, `Y(Y(y, r_t, r_m), r_m, r_s)` without a gradient (shortcut
      models: Frans et al., 2024, arXiv:2410.12557; progressive flow maps in Boffi et al., 2025, arXiv:2505.18825).

    In a share of the pairs s = t, where a map's answer is the velocity and the loss `|u - v|^2`: the limit of the first
    rule, and what the other two are anchored by. The teacher's velocity at Y has no gradient.

    Args:
        rule: its name. same: share of the pairs with s = t. clean: share of those where s is the clean end (`t_min` for
            "lagrangian"). states, tangent: `Maps`.

    Raises:
        ValueError: an unknown rule, shares above 1, and what `Maps` raises.
    """

    def __init__(
        self, setting: Setting, rule: str = "lagrangian", same: float = 0.25, clean: float = 0.25,
        states: str | None = None, tangent: str = "jvp",
    ) -> None:  # fmt: skip
        if rule not in RULES:
            raise suggest("rule", rule, RULES)
        check_shares(same=same, clean=clean)
        self.same, self.clean = same, clean
        self.rule = {"lagrangian": self.lagrangian, "eulerian": self.eulerian, "semigroup": self.semigroup}[rule]
        super().__init__(setting, states, tangent)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        t, s = pairs(self.setting, batch, generator, self.same, self.clean)
        return {**self.draw_states(batch, generator), "t": t, "s": s}

    def _loss(self, drawn: Batch) -> Tensor:
        return self.loss(self.states_at(drawn, drawn["t"]), drawn["t"], drawn["s"], drawn["condition"])

    def loss(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """The rule's loss (B,) at states (B, *shape) and pairs of times (B,)."""
        return self.rule(x, t, s, condition)

    def lagrangian(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        process = self.setting.process
        s, y = s.clamp(min=process.t_min), x / self._size(t, x)

        def ends(s: Tensor) -> Tensor:
            return y - self.way(t, s, x) * self.mean_velocity(x, t, s, condition)

        end, slope = self.derivative(ends, (s,), (1 / rate(process, s),), noise_share(process, s), keep=True)
        return squared(slope, self.velocity(end.detach() * self._size(s, x), s, condition))

    def eulerian(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        v = self.velocity(x, t, condition)
        u, slope = self.along(x, t, s, v, condition)
        way = self.way(t, s, x)
        # Y and a step down dY / dr = v - u - way slope, as differences from y; over the way where that is 0.
        residual = (u - v + way * slope).detach()
        return self._anchored(squared(way * u, (way * u).detach() - residual), u, v, t, s)

    def semigroup(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
        process, u = self.setting.process, self.mean_velocity(x, t, s, condition)
        v, middle = self.velocity(x, t, condition), self._middle(t, s)
        with torch.no_grad():
            first = self.f(x, t, to=middle, **condition)
            y = jump(process, x, t, middle, first.x0)
            second = self.mean_velocity(y, middle, s, condition)
            share = expand(self._part(t, middle, s), x)
            goal = share * first.to("flow") + (1 - share) * second
        return self._anchored(squared(u, goal), u, v, t, s)

    @staticmethod
    def _anchored(loss: Tensor, u: Tensor, v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The loss, and `|u - v|^2` where s = t."""
        return torch.where(s == t, squared(u, v), loss)

    def _middle(self, t: Tensor, s: Tensor) -> Tensor:
        """The times at half the way in r, cut to `t_min`."""
        process = self.setting.process
        return at_noise_share(process, (noise_share(process, t) + noise_share(process, s)) / 2, self.setting.start)

    def _part(self, t: Tensor, middle: Tensor, s: Tensor) -> Tensor:
        """The share of the way from t to s that lies before the middle."""
        r_t, r_m, r_s = (noise_share(self.setting.process, part) for part in (t, middle, s))
        way = r_t - r_s
        return torch.where(way > 0, (r_t - r_m) / torch.where(way > 0, way, 1.0), 0.5)

    def _size(self, t: Tensor, like: Tensor) -> Tensor:
        process = self.setting.process
        return expand(process.alpha(t) + process.sigma(t), like)
