"""One more step, at zero signal-to-noise ratio, for schedules that end before it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.core.files import write
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.core.started import Started, started
from fewstep.training.players import Player, cosine, optimise

METHODS = (
    Method(
        "one-more-step",
        kind="start",
        paper="One More Step: A Versatile Plug-and-Play Module for Rectifying Diffusion Schedule Flaws and Enhancing"
        " Low-Frequency Controls (Hu et al., 2023)",
        arxiv="2311.15744",
        claim="a start with the data's mean and spread, where a schedule leaves signal at its end",
        use="OneMoreStep",
    ),
)

FORMAT = "fewstep-one-more-step-1"


class OneMoreStep(nn.Module):
    """From pure noise to the distribution of `x_T = alpha_T x0 + sigma_T eps`, where a schedule with alpha_T > 0 ends.

    At zero signal-to-noise ratio the noise says nothing about x0, so all a network can predict from it is the mean of
    the data given the conditions: `v = -x0`, here an embedding of each label and two layers. With it alone,
    `x_T = alpha_T x0 + sigma_T z` has the right mean and too little variance, sigma_T^2. So the
    covariance C of the residuals is kept beside the network: its `rank` largest directions one by one and a single
    variance for all others, once with the labels given and once without; and the step is

        x_T = alpha_T m + (alpha_T^2 C + sigma_T^2)^(1/2) z,

    which is what the probability-flow ODE makes of z for Gaussian data N(m, C), from infinite noise to T. For such data
    the distribution of x_T is exact if `rank` is the dimension; for other data, mean and covariance are. `rank` 0 and
    `rest` 0 are the paper's step.

    Args:
        shape: one sample's; conditions: those of the model; width: of the network; rank: directions kept.
    """

    basis: Tensor
    spread: Tensor
    rest: Tensor

    def __init__(
        self, shape: Sequence[int], conditions: Mapping[str, Label] | None = None, width: int = 64, rank: int = 8
    ):
        super().__init__()
        size = math.prod(shape)
        if not 0 <= rank <= size or width < 1:
            raise ValueError(f"rank lies between 0 and {size}, the values of a sample, got {rank}; width {width}")
        self.shape, self.width, self.rank = tuple(shape), width, rank
        self.conditions = dict(conditions or {})
        self.embeddings = nn.ModuleDict(
            {name: nn.Embedding(label.classes + 1, width) for name, label in self.conditions.items()}
        )
        self.inner, self.out = nn.Linear(width, width), nn.Linear(width, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        # The covariance of the residuals, [0] with every label given, [1] with one missing.
        self.register_buffer("basis", torch.zeros(2, size, rank))
        self.register_buffer("spread", torch.zeros(2, rank))
        self.register_buffer("rest", torch.zeros(2))

    def forward(self, batch: int, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """The predicted v = -x0 at zero signal-to-noise ratio, `(batch, *shape)`; labels are `(batch,)` tensors."""
        condition = condition or {}
        inner = self.inner.weight.new_zeros(batch, self.width)
        for name, label in self.conditions.items():
            value = condition.get(name)
            if value is None:
                value = torch.full((batch,), label.classes, device=inner.device)
            inner = inner + self.embeddings[name](value)
        return self.out(torch.nn.functional.silu(self.inner(inner))).reshape(batch, *self.shape)

    @torch.no_grad()
    def start(self, process: Process, noise: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """x at `t_max` of the process from standard normal noise `(B, *shape)`, in the noise's dtype."""
        if tuple(noise.shape[1:]) != self.shape:
            raise ValueError(f"the start was made for samples of shape {self.shape}, got {tuple(noise.shape[1:])}")
        alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
        mean = -self(len(noise), condition).to(noise.dtype)
        missing = torch.zeros(len(noise), dtype=torch.long, device=noise.device)
        for name, label in self.conditions.items():
            value = (condition or {}).get(name)
            missing |= 1 if value is None else (value == label.classes).long()
        rest = (sigma**2 + alpha**2 * self.rest.double()).sqrt()
        more = (sigma**2 + alpha**2 * self.spread.double()).sqrt() - rest.unsqueeze(1)
        basis = self.basis.to(noise.dtype)
        along = torch.einsum("bd,jdr->bjr", noise.flatten(1), basis) * more.to(noise.dtype)
        added = torch.einsum("bjr,jdr->bjd", along, basis)[torch.arange(len(noise), device=noise.device), missing]
        scale = rest.to(noise.dtype)[missing].reshape(-1, *[1] * len(self.shape))
        return alpha * mean + scale * noise + added.reshape(noise.shape)

    @torch.no_grad()
    def set_spread(self, covariance: Tensor, which: int) -> None:
        """Keep a covariance `(D, D)`, for samples with every label given (0) or with one missing (1)."""
        values, vectors = torch.linalg.eigh(covariance.double())
        values, vectors = values.clamp_min(0).flip(0), vectors.flip(1)
        left = values[self.rank :]
        self.spread[which] = values[: self.rank].to(self.spread)
        self.basis[which] = vectors[:, : self.rank].to(self.basis)
        self.rest[which] = left.mean().to(self.rest) if len(left) else 0.0

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> OneMoreStep:
        """The step in closed form, for data with a known mean `(*shape)` and covariance `(D, D)`, in its dtype."""
        made = cls(tuple(mean.shape), width=1, rank=mean.numel()).to(mean)
        with torch.no_grad():
            made.out.bias.copy_(-mean.flatten())
        for which in (0, 1):
            made.set_spread(covariance, which)
        return made.eval().requires_grad_(False)

    def plan(self, base: Plan, process: Process) -> Started:
        """The base plan, unchanged, from this start; `ValueError` where it does not begin at the process's `t_max`."""
        if not base.fits(process):
            raise ValueError("the plan was made for another process")
        if base.times[0] != process.t_max:
            raise ValueError(f"the plan begins at t = {base.times[0]:g}, the step leads to t_max = {process.t_max:g}")

        def starter(noise: Tensor, seed: int, first: int, condition: dict[str, Tensor]) -> Tensor:
            return self.start(process, noise, condition)

        return started(base, starter, start="one-more-step")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write weights, covariance and configuration as one safetensors file, whole or not at all."""
        from safetensors.torch import save

        config = {
            "format": FORMAT,
            "shape": self.shape,
            "conditions": {name: label.classes for name, label in self.conditions.items()},
            "width": self.width,
            "rank": self.rank,
        }
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        return write(Path(path), save(weights, metadata={"config": json.dumps(config)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OneMoreStep:
        """Read a file of `save`; `ValueError` for anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                config = json.loads((file.metadata() or {}).get("config", "{}"))
                if config.pop("format", None) != FORMAT:
                    raise ValueError("it is of another format")
                conditions = {name: Label(classes) for name, classes in config.pop("conditions").items()}
                made = cls(conditions=conditions, **config)
                made.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} holds no step of this kind: {error}") from None
        return made.eval().requires_grad_(False)


def train_one_more_step(
    data: Tensor,
    labels: Mapping[str, Tensor] | None = None,
    *,
    steps: int = 500,
    batch: int = 256,
    rate: float = 1e-2,
    unlabelled: float = 0.1,
    width: int = 64,
    rank: int = 8,
    seed: int = 0,
) -> OneMoreStep:
    """The step, trained on data `(N, *shape)` and its labels `{name: (N,)}`.

    The network learns by the squared error of v (Adam, its rate falling to zero), with each label hidden for a share
    `unlabelled` of the samples; then the covariance of the residuals is measured. Everything random follows from
    `seed`.

    Raises:
        ValueError: labels that do not fit the data, a rank above the dimension.
    """
    labels = dict(labels or {})
    for name, value in labels.items():
        if value.shape != data.shape[:1]:
            raise ValueError(f"{name} must be {len(data)} labels, got shape {tuple(value.shape)}")
    data = data.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        conditions = {name: Label(int(value.max()) + 1) for name, value in labels.items()}
        made = OneMoreStep(tuple(data.shape[1:]), conditions, width, rank).to(data.device)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(data), (count,), generator=generator)
        condition = {}
        for name, value in labels.items():
            hidden = torch.rand(len(rows), generator=generator) < unlabelled
            condition[name] = value[rows].masked_fill(hidden.to(value.device), conditions[name].classes)
        return data[rows], condition

    def loss(drawn: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        x0, condition = drawn
        return (made(len(x0), condition) + x0).square().mean()

    player = Player(made, loss, lr=cosine(rate, steps), betas=(0.9, 0.999))
    generator = torch.Generator().manual_seed(seed)
    optimise({"model": player}, draw, steps=steps, batch=min(batch, len(data)), seed=generator)
    with torch.no_grad():
        for which, condition in enumerate((labels, {})):
            left = (data + made(len(data), condition)).flatten(1).double()
            if which == 0:
                made.out.bias.sub_(left.mean(0).to(made.out.bias))
            made.set_spread(left.T.cov(correction=0).reshape(left.shape[1], -1), which)
    return made.eval().requires_grad_(False)
