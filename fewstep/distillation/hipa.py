"""HiPA: one step by a small adapter, taught what a single step lacks first: high frequencies and edges."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.distillation.adapter import network_of
from fewstep.distillation.distances import Features, squared
from fewstep.distillation.method import Setting
from fewstep.distillation.regression import Regression
from fewstep.training.lora import layers

METHODS = (
    Method(
        "hipa",
        paper="HiPA: Enabling One-Step Text-to-Image Diffusion Models via High-Frequency-Promoting Adaptation"
        " (Zhang and Hooi, 2023)",
        arxiv="2311.18158",
        claim="an adapter of under 5 % of the weights makes one step keep high frequencies and edges",
        use="HighFrequency",
        facts={
            "student": "jump",
            "data": False,
            "pairing": True,
            "players": ("student",),
            "steps": 1,
            "small": {"pairs": 32, "plan": "ddim", "most": 1.0, "features": 0.0, "fourier": 0.0, "edges": 0.0},
        },
    ),
)

MOST = 0.05  # share of the network's weights that the adapter may have


def high_pass(height: int, width: int, cut: float, device: torch.device | None = None) -> Tensor:
    """Which components (H, W) of a picture's Fourier transform lie beyond the share `cut` of Nyquist's frequency, the
    corners of the square included."""
    y, x = (torch.fft.fftfreq(n, device=device) for n in (height, width))
    return (y[:, None].square() + x.square()).sqrt() > cut / 2


def fourier_distance(a: Tensor, b: Tensor, cut: float) -> tuple[Tensor, Tensor]:
    """How far two pictures (B, C, H, W) are apart beyond `cut` of Nyquist: in amplitude and in phase, (B,) each.

    Of components A and B the parts are `(|A| - |B|)^2` and `2 |A| |B| (1 - cos(arg A - arg B))`. They add up to
    `|A - B|^2`, so that a phase counts as much as there is to it, and both together are the mean square of the
    pictures' difference within those frequencies.
    """
    kept = high_pass(a.shape[-2], a.shape[-1], cut, a.device)
    one, other = (torch.fft.fft2(x, norm="ortho") * kept for x in (a, b))
    strong, weak = one.abs(), other.abs()
    phase = 2 * (strong * weak - (one * other.conj()).real)
    return squared(strong, weak), phase.flatten(1).mean(1)


def edges(x: Tensor) -> Tensor:
    """Sobel's derivatives along y and x of pictures (B, C, H, W), in brightness a pixel: (B, 2 C, H - 2, W - 2), for
    nothing is known beyond the border."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([-1.0, 0.0, 1.0]) / 2
    both = torch.stack([slope[:, None] * smooth, smooth[:, None] * slope]).to(x)[:, None]
    return functional.conv2d(x, both.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])


def rank_within(setting: Setting, most: float) -> int:
    """The largest rank of an adapter on all layers of the base's network whose weights are a share below `most` of it.

    Raises:
        ValueError: not even rank 1 is.
    """
    base = setting.base
    modules = dict(network_of(base).named_modules())
    one = sum(len(w) + w[0].numel() for name in layers(base) for w in [modules[name].weight])  # type: ignore
    total = sum(p.numel() for p in network_of(base).parameters())
    rank = int((most * total - 1) // one) if one else 0
    if rank < 1:
        raise ValueError(
            f"even an adapter of rank 1 has {one / total:.1%} of the network's weights, and may have {most:.1%}: a"
            " larger most="
        )
    return rank


class HighFrequency(Regression):
    """kd's pairs, an adapter, and four distances of its one answer from their ends, added up.

    They are the mean square, that of the features of the frozen base's block in the middle, amplitudes and phases
    beyond `cut` of Nyquist (`fourier_distance`), and the mean absolute difference of Sobel's edges. The paper's spatial
    loss has the features of a network for pictures; here those of the teacher's own are there.

    The student is an adapter (`lora`) whose share of the weights is below `most`; of which rank follows from that where
    none is given. At `most=1` without a rank all weights train.

    Args:
        features, fourier, edges: weights of the last three beside the first. cut: from 0 to 1. most: share of the
            network's weights that train. pairs, plan, fresh: as `kd`.

    Raises:
        ValueError: a weight below 0, a cut or share outside its range, a larger adapter, samples that are no pictures
            of at least 3x3 where a distance is for pictures; and what `Regression` and `Features` raise.
    """

    def __init__(
        self, setting: Setting, pairs: int = 8192, plan: Plan | str | None = None, fresh: float = 0.0,
        features: float = 0.1, fourier: float = 1.0, edges: float = 0.1, cut: float = 0.5, most: float = MOST,
    ) -> None:  # fmt: skip
        weights = {"features": features, "fourier": fourier, "edges": edges}
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"the weight {name} must be at least 0 and finite, got {value}")
        if not 0 <= cut <= 1 or not 0 < most <= 1:
            raise ValueError(f"cut must be from 0 to 1 and most above 0 to 1, got {cut} and {most}")
        if (fourier or edges) and (len(setting.shape) != 3 or min(setting.shape[1:]) < 3):
            raise ValueError(f"frequencies and edges are of pictures of at least 3x3, and samples are {setting.shape}")
        self.weights, self.cut = weights, cut
        if setting.lora is None and most < 1:
            setting.lora = rank_within(setting, most)
        super().__init__(setting, pairs, plan, fresh)
        own = sum(p.numel() for p in self.players["student"].parameters)
        self.share = own / sum(p.numel() for p in network_of(setting.base).parameters())
        if most < 1 and not self.share < most:
            raise ValueError(
                f"an adapter of rank {setting.lora} has {self.share:.1%} of the network's weights, and may have"
                f" {most:.1%}: a smaller lora= or a larger most="
            )
        self.features = Features(setting.base) if features else None

    def figures(self) -> dict[str, float]:
        return {"trained_share": self.share}

    def loss(self, z: Tensor, x0: Tensor, condition: dict[str, Tensor]) -> Tensor:
        f, t = self.setting.counted(self.student), self.setting.times(self.setting.start, len(z))
        made = f(self.setting.begin(z), t, **condition).x0
        total = squared(made, x0)
        if self.features is not None:
            total = total + self.weights["features"] * self.features(made, x0, condition)
        if self.weights["fourier"]:
            amplitude, phase = fourier_distance(made, x0, self.cut)
            total = total + self.weights["fourier"] * (amplitude + phase)
        if self.weights["edges"]:
            far = (edges(made) - edges(x0)).abs().flatten(1).mean(1)
            total = total + self.weights["edges"] * far
        return total
