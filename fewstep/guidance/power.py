"""Annealing: a model's score times a number, as that of a power of its law has it at every noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, conversion, expand, scales

METHODS = (
    Method(
        "power",
        paper="Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts (Skreta et al., 2025)",
        arxiv="2503.02819",
        claim="corrected by particles it is a power of the model's law; by itself, samples sharper or flatter",
        use="Power",
        facts={"wraps": True, "changes": ("plan",)},
    ),
)


class Power(Wrapper):
    """`beta` times the model's eps, which is that of `p_t(x)^beta`: above 1 sharper, below 1 flatter.

    These laws at different noise levels are not noised versions of one another, so a plan alone does not sample
    `p_0(x)^beta`; steered by "fkc" it does (`fs.steer`). Nothing can start from pure noise, alpha = 0: there x0 of a
    power is infinite. beta 1 is the model, bit for bit.

    Raises:
        ValueError: a beta that is not above 0 and finite.
    """

    def __init__(self, model: Denoiser, beta: float):
        if not 0 < beta < float("inf"):
            raise ValueError(f"beta must be above 0 and finite, got {beta!r}")
        super().__init__(model, plan=model.plan if beta == 1 else None)
        self.beta = float(beta)

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"power": self.beta}

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "beta": self.beta}

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        answer = ask(self.model, x, t, memory, condition)
        if self.beta == 1:
            return answer
        # The value is P x + Q eps: with eps times beta, beta value + (1 - beta) P x.
        p = conversion("eps", answer.kind, *scales(self.process, t))[0]
        return answer.replaced(self.beta * answer.value + (1 - self.beta) * expand(p, x) * x)

    def terms(
        self, x: Tensor, t: Tensor, memory: AnyMemory | None, condition: Mapping[str, Any]
    ) -> tuple[tuple[float, ...], list[Prediction]]:
        """The weights and the answers whose weighted sum of eps is this one's; `(beta,)` and the model's own, or those
        of a composition times beta."""
        inner = getattr(self.model, "terms", None)
        if inner is None:
            return (self.beta,), [ask(self.model, x, t, memory, condition)]
        betas, answers = inner(x, t, memory, condition)
        return tuple(self.beta * beta for beta in betas), answers
