"""Which noise level a noisy sample has: the posterior over levels, learned, or exact where densities are known."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.files import write
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.core.process import Process, process_from_config
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.training.players import Player, cosine, optimise

METHODS = (
    Method(
        "noise-classifier",
        kind="correction",
        paper="Denoising MCMC for Accelerating Diffusion-Based Generative Models (Kim & Ye, 2022)",
        arxiv="2209.14593",
        claim="p(noise level | noisy sample), trained in seconds on vectors and small images",
        use="NoiseClassifier",
    ),
)

FORMAT = "fewstep-noise-classifier-1"


def noise_times(process: Process, levels: int, low: float, high: float) -> tuple[float, ...]:
    """`levels` times, noisiest first, whose noise-to-signal ratios `sigma / alpha` fall geometrically from high to low.

    Raises:
        ValueError: fewer than 2 levels, an empty range, or one that leaves the process's clock.
    """
    if levels < 2 or not 0 < low < high:
        raise ValueError(f"noise levels are at least 2, with 0 < low < high, got {levels} from {low} to {high}")
    first, last = process.log_snr(process.t_max), process.log_snr(process.t_min)
    if not (first - 1e-9 <= -math.log(high) and -math.log(low) <= last + 1e-9):
        raise ValueError(
            f"sigma / alpha from {low:g} to {high:g} leaves the process, which has"
            f" {math.exp(-last):g} to {math.exp(-first):g}"
        )
    step = math.log(low / high) / (levels - 1)
    return tuple(process.time(-math.log(high) - k * step) for k in range(levels))


class NoiseClassifier(nn.Module):
    """Logits `(B, K)` of `p(level | y)` for `y = x / alpha` `(B, *shape)`, all `times` (K, noisiest first) being
    equally likely beforehand.

    The network sees `y / c` and `log c` with `c^2 = data_std^2 + mean(y^2)`, so any noise level is of order one.
    Vectors go through three layers, images (channels, height, width) through three convolutions, whose means and
    standard deviations over the image are classified.

    Raises:
        ValueError: fewer than 2 times, times that do not fall, a shape that is neither a vector's nor an image's.
    """

    def __init__(
        self, process: Process, times: Sequence[float], shape: Sequence[int], data_std: float = 1.0, width: int = 64
    ):
        super().__init__()
        if len(times) < 2 or any(a <= b for a, b in zip(times, times[1:], strict=False)):
            raise ValueError(f"times must be at least 2, falling, got {list(times)}")
        if len(shape) not in (1, 3):
            raise ValueError(f"a sample is a vector (D,) or an image (C, H, W), got shape {tuple(shape)}")
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, got {data_std}")
        self.process, self.times, self.shape = process, tuple(map(float, times)), tuple(shape)
        self.data_std, self.width = float(data_std), width
        image = len(shape) == 3
        inputs = shape[0] + 1  # the last one is log c
        layers: list[nn.Module] = []
        for _ in range(3):
            layers.append(nn.Conv2d(inputs, width, 3, padding=1) if image else nn.Linear(inputs, 2 * width))
            layers.append(nn.SiLU())
            inputs = width if image else 2 * width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width + 1, len(times))

    def forward(self, y: Tensor) -> Tensor:
        if tuple(y.shape[1:]) != self.shape:
            raise ValueError(f"the classifier takes (B, {', '.join(map(str, self.shape))}), got {tuple(y.shape)}")
        y = y.to(self.head.weight.dtype)
        c = (y.flatten(1).square().mean(1) + self.data_std**2).sqrt()
        size, log_c = c.reshape(-1, *[1] * len(self.shape)), c.log().unsqueeze(1)
        extra = log_c.reshape(-1, *[1] * len(self.shape)).expand(-1, 1, *self.shape[1:])
        inner = self.body(torch.cat((y / size, extra), 1))
        if inner.ndim == 4:
            inner = torch.cat((inner.mean((2, 3)), inner.flatten(2).std(2)), 1)
        return self.head(torch.cat((inner, log_c), 1))

    def log_snr(self, x: Tensor, t: Tensor) -> Tensor:
        """`E[log(alpha / sigma) | x]` (B,), float64, of states `(B, *shape)` whose alpha is that of the time t."""
        y = x / expand(self.process.alpha(t), x)
        known = torch.tensor([self.process.log_snr(time) for time in self.times], dtype=torch.float64)
        return self(y).double().softmax(1) @ known.to(x.device)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write weights and configuration as one safetensors file, whole or not at all."""
        from safetensors.torch import save

        config = {
            "format": FORMAT,
            "process": self.process.config(),
            "times": self.times,
            "shape": self.shape,
            "data_std": self.data_std,
            "width": self.width,
        }
        weights = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        return write(Path(path), save(weights, metadata={"config": json.dumps(config)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NoiseClassifier:
        """Read a file of `save`; `ValueError` for anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                config = json.loads((file.metadata() or {}).get("config", "{}"))
                if config.pop("format", None) != FORMAT:
                    raise ValueError("it is of another format")
                made = cls(process_from_config(config.pop("process")), **config)
                made.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} holds no noise classifier: {error}") from None
        return made.eval().requires_grad_(False)


def train_noise_classifier(
    process: Process,
    data: Tensor,
    times: Sequence[float],
    *,
    steps: int = 2000,
    batch: int = 256,
    rate: float = 3e-3,
    width: int = 64,
    seed: int = 0,
) -> NoiseClassifier:
    """A classifier trained on clean data `(N, *shape)`, real or a model's samples, noised to levels drawn evenly.

    Cross-entropy, Adam at a rate that falls to zero; everything random follows from `seed`. On the data's device.
    """
    data = data.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        model = NoiseClassifier(process, times, tuple(data.shape[1:]), float(data.std()), width).to(data.device)
    ratio = torch.tensor([process.sigma(t) / process.alpha(t) for t in times], device=data.device)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(data), (count,), generator=generator)
        level = torch.randint(len(times), (count,), generator=generator).to(data.device)
        eps = torch.randn((count, *data.shape[1:]), generator=generator).to(data.device)
        return data[rows.to(data.device)] + ratio[level].reshape(-1, *[1] * (data.ndim - 1)) * eps, level

    def loss(drawn: tuple[Tensor, Tensor]) -> Tensor:
        noisy, level = drawn
        return F.cross_entropy(model(noisy), level)

    player = Player(model, loss, lr=cosine(rate, steps), betas=(0.9, 0.999))
    optimise({"model": player}, draw, steps=steps, batch=batch, seed=torch.Generator().manual_seed(seed))
    return model.eval().requires_grad_(False)


def exact_levels(model: GaussianMixture, times: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """The same logits from the exact densities of a mixture: `log p(y | level)`, y = x / alpha."""

    def logits(y: Tensor) -> Tensor:
        columns = []
        for t in times:
            alpha = model.process.alpha(t)
            density = model.log_likelihood(y * alpha, torch.tensor(t, dtype=torch.float64))
            columns.append(density + y[0].numel() * math.log(alpha))
        return torch.stack(columns, 1)

    return logits
