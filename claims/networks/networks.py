"""Claims of the networks."""

from __future__ import annotations

import torch

from claims.common import EDM, SLICED, Claim, Outcome, compared, sample, sliced_wasserstein, slow
from claims.problems import mixture
from claims.short_run import STEPS, alone, held_out, learns, trained, weights
from claims.trained import MLP, NetworkDenoiser, NoiseLevels, UNet, fit, fresh
from fewstep.networks.convolution import Convolution
from fewstep.networks.dit import DiT

N = 2000


def _reach(seed: int) -> Outcome:
    """Gradient of one pixel's answer by the input beyond the receptive field, with no weight zero."""
    network = fresh(Convolution, seed, channels=2, width=12, depth=4)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    x = torch.randn(1, 2, 25, 31, generator=generator).requires_grad_(True)
    network(x, torch.tensor(0.4))[0, :, 12, 15].sum().backward()
    reach, inside = network.receptive_field // 2, torch.zeros(25, 31, dtype=torch.bool)
    inside[12 - reach : 13 + reach, 15 - reach : 16 + reach] = True
    size = x.grad.abs().amax((0, 1))
    figures = float(size[~inside].max()), float(size[inside].min())
    about = f"25x31 pixels, receptive field {network.receptive_field}"
    return compared(figures, "the least within it", about, unit="gradient of a pixel's answer")


def _learns(seed: int) -> Outcome:
    """A mixture learned from its samples, against a Gaussian of the same mean and covariance."""
    process = EDM(sigma_max=10.0)
    exact = mixture(process)
    data = exact.sample(20_000, seed).float()
    network = MLP((2,), 64, 3)
    model = NetworkDenoiser(network, process, "x0", (2,), precondition="edm", data_std=float(data.std()))
    trained = fit(model, data, steps=1500, batch=256, lr=2e-3, levels=NoiseLevels(process, "log-snr"), seed=seed)
    real, far = exact.sample(N, seed + 1).float(), exact.sample(N, seed + 2).float()
    normal = torch.randn(N, 2, generator=torch.Generator().manual_seed(seed))
    gaussian = data.mean(0) + normal @ torch.linalg.cholesky(data.T.cov()).T
    drawn = sample(trained, N, steps=20, seed=seed)
    ours, theirs, floor = (sliced_wasserstein(x, real).value for x in (drawn, gaussian, far))
    about = f"2-D mixture of eight, 1500 steps of 256, {N} samples by 20 steps of dpmpp-3m; exact samples: {floor:.2g}"
    return Outcome(ours, theirs, "a Gaussian of the data's mean and covariance", about, unit=SLICED)


def _against_dit(seed: int) -> Outcome:
    ours, theirs = trained("unet", seed), trained("dit", seed)
    about = f"{STEPS} steps of 64 digits, unet of {weights(ours)} and dit of {weights(theirs)} weights, equal settings"
    return Outcome(held_out(ours), held_out(theirs), "dit", about, unit="held-out loss")


CLAIMS = (
    Claim("convolution", "an answer depends on its receptive field, all of it and nothing else", _reach),
    Claim("dit", "a sample's answer does not depend on its batch, on images that are not square",
          alone(DiT, patch=2, width=16, depth=2)),
    slow("dit", "learns the digits in a few seconds", learns("dit")),
    slow("mlp", "learns a mixture's density from its samples", _learns),
    Claim("unet", "a sample's answer does not depend on its batch, at any size that divides",
          alone(UNet, width=(8, 12, 16), attention=(2,))),
    slow("unet", "learns the digits in a few seconds", learns("unet")),
    slow("unet", "learns 8x8 digits faster than a transformer, step for step", _against_dit),
)  # fmt: skip
