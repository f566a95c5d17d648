"""A guide for every noise level, made of one that knows clean samples alone, without labels (PPAP)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.arguments import check_whole
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.sampling.sample import sample
from fewstep.training.experts import RangeLevels, range_cuts
from fewstep.training.lora import add_lora
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.players import Player, cosine, optimise

METHODS = (
    Method(
        "ppap",
        kind="trainer",
        paper="Towards Practical Plug-and-Play Diffusion Models (Go et al., 2023)",
        arxiv="2212.05973",
        claim="a clean classifier guides at every noise level after label-free low-rank tuning by ranges",
        use="fit_experts",
    ),
)


def seen(process: Process, x: Tensor, t: Tensor, data_std: float) -> Tensor:
    """A state at the spread of the data: `x / sqrt(alpha^2 + sigma^2 / data_std^2)`, at no noise `x / alpha`."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return x / expand((alpha**2 + (sigma / data_std) ** 2).sqrt(), x)


class GuideExperts(nn.Module):
    """One frozen guide with thin matrices `B_k A_k` added to its weights, another pair for each range of noise levels.

    The weights of the range of a time are added up on the device, so a call reads nothing back and changes no module.
    A call whose samples have times of their own runs the guide once for each range.

    Args:
        guide: logits (B, C) of samples (B, *shape) in the process's coordinates.
        cuts: the times between the ranges, rising; a time at a cut goes to the noisier side (as in `Experts`).
        adapters: by the path of a layer in the guide, `A` (N, r, ...) and `B` (N, out, r, ...).
        data_std: standard deviation of the data.
        condition: the name of the condition that is the class.
    """

    cuts: Tensor

    def __init__(
        self,
        guide: nn.Module,
        process: Process,
        cuts: Sequence[float],
        adapters: Mapping[str, tuple[Tensor, Tensor]],
        data_std: float,
        condition: str = "label",
    ):
        super().__init__()
        self.guide, self.process, self.data_std, self.condition = guide, process, data_std, condition
        self.register_buffer("cuts", torch.tensor(cuts, dtype=torch.float64))
        self.paths = tuple(adapters)
        self.down = nn.ParameterList([a for a, _ in adapters.values()])
        self.up = nn.ParameterList([b for _, b in adapters.values()])
        self.requires_grad_(False).eval()

    @property
    def share(self) -> float:
        """Trained numbers of one expert, as a share of the guide's."""
        own = sum(p[0].numel() for p in (*self.down, *self.up))
        return own / sum(p.numel() for p in self.guide.parameters())

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, C) of noisy samples at a time, one for all or one each (B,)."""
        y, chosen = seen(self.process, x, t, self.data_std), torch.bucketize(t.double(), self.cuts, right=True)
        if t.ndim == 0:
            return self._expert(chosen.reshape(1), y)
        numbers = torch.arange(len(self.cuts) + 1, device=x.device)
        each = torch.stack([self._expert(numbers[k : k + 1], y) for k in range(len(numbers))])
        return each.gather(0, chosen.reshape(1, -1, 1).expand(1, *each.shape[1:]))[0]

    def _expert(self, number: Tensor, y: Tensor) -> Tensor:
        weights = {}
        for path, a, b in zip(self.paths, self.down, self.up, strict=True):
            weight = self.guide.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            product = b.index_select(0, number)[0].flatten(1) @ a.index_select(0, number)[0].flatten(1)
            weights[f"{path}.weight"] = weight + product.view_as(weight)
        out: Tensor = torch.func.functional_call(self.guide, weights, (y,))
        return out

    def log_probability(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """`log p_t(class | x)` (B,) of the class in the condition, 0 where it has none."""
        logits = self.logits(x, t)
        label = condition.get(self.condition)
        if label is None:
            return logits.new_zeros(len(x))
        label = torch.as_tensor(label, device=x.device).expand(len(x))
        known = label < logits.shape[1]
        found = logits.log_softmax(1).gather(1, label.clamp(max=logits.shape[1] - 1).unsqueeze(1))[:, 0]
        return torch.where(known, found, 0.0)


def fit_experts(
    model: Denoiser,
    guide: nn.Module,
    ranges: int = 5,
    rank: int = 4,
    *,
    steps: int,
    samples: Tensor | int = 1024,
    levels: NoiseLevels | None = None,
    batch: int = 64,
    lr: float = 2e-2,
    condition: str = "label",
    seed: int = 0,
) -> GuideExperts:
    """A guide for noisy samples from one for clean samples: `.log_probability(x, t, label=...)` (Go et al., section 4).

    An expert for each of `ranges` equal shares of the noise levels learns to answer a noised sample as the guide
    answers the clean one, by the Kullback-Leibler divergence of the two. No label is needed, and no data: the clean
    samples are the model's own. Everything random follows from `seed`.

    Args:
        model: whose samples and process they are; without a condition.
        guide: logits (B, C) of clean samples (B, *shape), in the process's coordinates. It stays as it is.
        rank: of the adapters in all of its linear and convolution layers (`fewstep.training.lora`).
        steps: of each expert.
        samples: the clean samples (N, *shape), or how many to draw from the model.
        levels: the noise levels; by default even in log-SNR.
        condition: the name of the condition that is the class.

    Raises:
        ValueError: ranges, rank, steps or batch below 1, no samples, a guide that does not answer (B, C).
    """
    for name, value in (("ranges", ranges), ("rank", rank), ("steps", steps), ("batch", batch)):
        check_whole(name, value)
    if isinstance(samples, int):
        check_whole("samples", samples)
        samples = sample(model, samples, seed=seed)
        samples = model.encode(samples)
    if not len(samples):
        raise ValueError("fit_experts needs clean samples to noise, got none")
    levels = levels or NoiseLevels(model.process)
    std = float(getattr(model, "data_std", None) or samples.std())
    base = _Held(guide)
    edges, made = [k / ranges for k in range(ranges + 1)], []
    for number, (low, high) in enumerate(pairwise(edges)):
        tuned: Any = add_lora(base, rank, seed=seed + number)  # type: ignore[arg-type]  # all it takes is a network
        match(guide, tuned.network, model.process, samples, RangeLevels(levels, low, high), std,
              steps=steps, batch=batch, lr=lr, seed=seed + number)  # fmt: skip
        made.append({path: layer for path, layer in tuned.network.named_modules() if hasattr(layer, "lora_A")})
    adapters = {
        path: (
            torch.stack([layers[path].lora_A["default"].weight.detach() for layers in made]),
            torch.stack([layers[path].lora_B["default"].weight.detach() for layers in made]),
        )
        for path in made[0]
    }
    return GuideExperts(guide, model.process, range_cuts(levels, edges[1:-1]), adapters, std, condition)


class _Held(nn.Module):
    """A guide where `add_lora` looks for it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def match(
    guide: nn.Module,
    student: nn.Module,
    process: Process,
    samples: Tensor,
    levels: NoiseLevels,
    data_std: float,
    *,
    steps: int,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> list[float]:
    """Trains a student, in place, to answer noised samples as the guide answers the clean ones; the losses by step.

    The parameters that require gradients are trained, by Adam at a rate that falls to zero; `fit_experts` says the
    rest.
    """
    was = guide.training
    guide.eval()
    with torch.no_grad():
        wanted = torch.cat([guide(part) for part in samples.split(1024)])
    guide.train(was)
    if wanted.ndim != 2 or len(wanted) != len(samples):
        raise ValueError(f"a guide must answer logits (B, C), got {tuple(wanted.shape)} for {len(samples)} samples")
    target, device = wanted.log_softmax(1), samples.device

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(samples), (count,), generator=generator)
        t = levels.quantile(torch.rand(count, generator=generator, dtype=torch.float64)).to(device)
        eps = torch.randn((count, *samples.shape[1:]), generator=generator, dtype=samples.dtype).to(device)
        x0 = samples[rows.to(device)]
        return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps, t, rows.to(device)

    def loss(drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, t, rows = drawn
        answer = student(seen(process, x, t, data_std)).log_softmax(1)
        return F.kl_div(answer, target[rows], reduction="none", log_target=True).sum(1)

    losses = torch.zeros(steps)
    player = Player(student, loss, lr=cosine(lr, steps), betas=(0.9, 0.999), clip=math.inf)
    student.eval()  # the guide's dropout would blur what it is to match
    optimise(
        {"model": player}, draw, steps=steps, batch=batch, seed=torch.Generator().manual_seed(seed),
        watch=lambda moment: losses.__setitem__(moment.step, moment.losses["model"].mean()),
    )  # fmt: skip
    return losses.tolist()
