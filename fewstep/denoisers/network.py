"""A network as a denoiser: its process, what it predicts, and its preconditioning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.conditions.latent import Latent
from fewstep.conditions.time import aimed
from fewstep.core.arguments import checked
from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import KINDS, Prediction, coefficients, expand, scales
from fewstep.core.process import Process
from fewstep.core.student import Student
from fewstep.networks.embedding import Embedding

METHODS = (
    Method(
        "network",
        paper="Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)",
        arxiv="2206.00364",
        claim="any network under any process, with or without EDM's preconditioning",
        use="NetworkDenoiser",
    ),
)

PRECONDITIONS = ("none", "edm")


class NetworkDenoiser(Denoiser):
    """`network(x, noise, **condition)` with a process.

    precondition "none": the network sees x and the process time, and returns `predicts` itself.

    precondition "edm" (Karras et al., Table 1, written for any alpha; their state is `x / alpha`): with
    `norm = sqrt(sigma^2 + alpha^2 data_std^2)` the network sees `x / norm` and `log(sigma / alpha) / 4`, and its
    output F makes `x0 = alpha data_std^2 / norm^2 x + sigma data_std / norm F`: near the data mostly x, in the noise
    mostly F, with unit variance in and out.

    The state may be of any float dtype; the network works in its own.

    A flow map has the condition `to` (of kind `Time`): its network also takes `target` `(B,)`, that time's noise level
    in the form in which it sees the state's own. The answer's x0 is then the g for which DDIM's step
    `(sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) g` from t is the state at s = `to` (Kim et al.,
    2310.02279, for any process). Without `to` it is the ordinary denoiser, to which s = t is the limit.

    One that draws has the condition `latent` (of kind `Latent`), and its network takes that vector as `latent`.

    Args:
        predicts: kind of the network's output, one of x0, eps, v, velocity, score (x0 with "edm").
        shape: one sample's shape; data_std: standard deviation of the data ("edm" only).
        data: name of the data set it was trained on, where that can be opened again (fewstep.data.open.open_data).
        noise_dropout: probability with which training hides a sample's noise level from the network, which then learns
            an answer for an unknown one as well (the guidance "nag"); drawn from torch's generator, like dropout.
        student: what it is, where it was distilled, or its configuration.
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        process: Process,
        predicts: str = "eps",
        shape: tuple[int, ...] | None = None,
        conditions: Mapping[str, Condition] | None = None,
        precondition: str = "none",
        data_std: float = 0.5,
        value_range: tuple[float, float] | None = (-1.0, 1.0),
        data: str | None = None,
        noise_dropout: float = 0.0,
        student: Student | Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if predicts not in KINDS:
            raise suggest("prediction kind", predicts, KINDS)
        if precondition not in PRECONDITIONS:
            raise suggest("precondition", precondition, PRECONDITIONS)
        if precondition == "edm" and predicts != "x0":
            raise ValueError(f"EDM's preconditioning predicts 'x0', not {predicts!r}")
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, got {data_std}")
        self.network, self.process, self.predicts = network, process, predicts
        self.shape = tuple(shape) if shape is not None else None
        self.conditions = dict(conditions or {})
        self.precondition, self.data_std, self.value_range = precondition, float(data_std), value_range
        self.data = data
        self.student = Student.from_config(student) if isinstance(student, Mapping) else student
        if not 0 <= noise_dropout < 1:
            raise ValueError(f"noise_dropout must be at least 0 and below 1, got {noise_dropout}")
        self.noise_dropout = float(noise_dropout)
        if noise_dropout:
            embeddings = [module for module in network.modules() if isinstance(module, Embedding)]
            if not embeddings:
                raise ValueError("noise_dropout needs a network with the noise embedding of fewstep.networks.embedding")
            for embedding in embeddings:
                embedding.hide_noise()

    def config(self) -> dict[str, Any]:
        names = ("network", "process", "predicts", "shape", "conditions")
        further = ("precondition", "data_std", "value_range", "data")
        hiding = ("noise_dropout",) if self.noise_dropout else ()  # configurations of all others stay as they were
        distilled = {} if self.student is None else {"student": self.student.config()}
        return {name: getattr(self, name) for name in (*names, *further, *hiding)} | distilled

    @property
    def dtype(self) -> torch.dtype:
        """The network's dtype: that of its first parameter."""
        return next((p.dtype for p in self.network.parameters()), torch.float32)

    def describe(self) -> dict[str, Any]:
        config = self.network.config() if callable(getattr(self.network, "config", None)) else {}  # type: ignore[operator]
        own = {"network": config.pop("network", type(self.network).__name__)}
        own |= {"network options": config, "predicts": self.predicts, "precondition": self.precondition}
        return own | super().describe()

    def _call(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> Tensor:
        # The noise level stays in float32: bfloat16 has three digits, too few to distinguish two steps.
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        if "target" in condition:
            condition = {**condition, "target": condition["target"].to(exact).expand(x.shape[0])}
        return self.network(x.to(self.dtype), noise.to(exact).expand(x.shape[0]), **condition).to(x.dtype)

    def _told(self, condition: dict[str, Any], t: Tensor | None = None) -> dict[str, Any]:
        """The conditions as the network takes them: `to` as the noise level `target`, or left out without the state's
        time t. The clean end is seen as the smallest noise: levels beyond it are none that a network was trained at.
        Of a draw that is a `latent` the network gets the first numbers."""
        if isinstance(kind := self.conditions.get("latent"), Latent) and condition.get("latent") is not None:
            condition = condition | {"latent": kind.of(condition["latent"])}
        if "to" not in self.conditions:
            return condition
        to = condition.pop("to", None)
        if to is None or t is None:
            return condition
        return condition | {"target": self._level(aimed(to, t).clamp(min=self.process.t_min))}

    def _level(self, t: Tensor) -> Tensor:
        """A time as the network sees it."""
        if self.precondition == "none":
            return t
        return (-self.process.log_snr(t) / 4).clamp(-5.0, 5.0)  # infinite at pure noise

    def _edm(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_in, c_noise, c_skip, c_out."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        norm = (sigma**2 + alpha**2 * self.data_std**2).sqrt()
        return (
            expand(1 / norm, x),
            self._level(t),
            expand(alpha * self.data_std**2 / norm**2, x),
            expand(sigma * self.data_std / norm, x),
        )

    def _seen(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """What the network receives at state x: its input, its noise level, and `(c_skip, c_out)` where it has them."""
        if self.precondition == "none":
            return x, t, None
        c_in, c_noise, c_skip, c_out = self._edm(x, t)
        return c_in * x, c_noise, (c_skip, c_out)

    def _answer(self, output: Tensor, x: Tensor, t: Tensor, scale: tuple[Tensor, Tensor] | None) -> Prediction:
        if scale is None:
            return Prediction(output, self.predicts, x, t, self.process)
        return Prediction(torch.addcmul(scale[0] * x, scale[1], output), "x0", x, t, self.process)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        seen, noise, scale = self._seen(x, t)
        return self._answer(self._call(seen, noise, self._told(condition, t)), x, t, scale)

    def _task(self, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A training sample's input and noise level for the network, NaN where it is hidden, and what its output should
        be."""
        alpha, sigma, dalpha, dsigma = scales(self.process, t)
        x = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
        if self.precondition == "edm":
            c_in, c_noise, _, _ = self._edm(x, t)
            # (x0 - c_skip x) / c_out, written so that nothing cancels at small sigma.
            target = expand(sigma, x0) * x0 / self.data_std - expand(alpha, x0) * self.data_std * eps
            return c_in * x, self._hidden(c_noise, len(x)), c_in * target
        a, b = coefficients(self.predicts, alpha, sigma, dalpha, dsigma)
        return x, self._hidden(t, len(x)), expand(a, x0) * x0 + expand(b, x0) * eps

    def _hidden(self, noise: Tensor, batch: int) -> Tensor:
        """The noise levels `(batch,)` of a training step, some of them hidden."""
        if not self.noise_dropout or not self.training:
            return noise
        hidden = torch.rand(batch, device=noise.device) < self.noise_dropout
        return noise.expand(batch).masked_fill(hidden, torch.nan)

    def loss_pair(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """The network's output at `alpha x0 + sigma eps` and what it should have been, both `(B, *shape)`.

        Their squared difference is the training loss: in the network's own kind, and for EDM's preconditioning
        that in which every noise level has the same weight (their `lambda(sigma) c_out^2 = 1`). A flow map learns to
        be the ordinary denoiser by it: `to` is t.
        """
        seen, noise, target = self._task(x0, eps, t)
        return self._call(seen, noise, self._told(condition)), target

    def loss_parts(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """`loss_pair`, and the `fraction` of a network that learns its variance (`LearnedVariance`), or None."""
        return (*self.loss_pair(x0, eps, t, **condition), None)

    def own_error(self, t: Tensor) -> Tensor:
        """Squared error of eps per squared error of the network's own output at time t, float64.

        At a known state an output `a x0 + b eps` has the error `(b - a sigma / alpha)` times that
        of eps; EDM's F has `1 / c_out` times the error of x0, which is `sigma / alpha` times that of eps.
        """
        alpha, sigma, dalpha, dsigma = scales(self.process, t)
        if self.precondition == "edm":
            c_out2 = (sigma * self.data_std) ** 2 / (sigma**2 + (alpha * self.data_std) ** 2)
            return c_out2 * (alpha / sigma) ** 2
        a, b = coefficients(self.predicts, alpha, sigma, dalpha, dsigma)
        if self.predicts in ("eps", "score"):  # a = 0, and so the answer holds at alpha = 0 as well
            return 1 / b**2
        return (alpha / (b * alpha - a * sigma)) ** 2
