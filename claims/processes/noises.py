"""Claims of noise that is correlated, multiplied, or differs from place to place."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from claims.claim import Claim, Outcome, Run, arms, over_seeds, slow, tolerance
from claims.common import F64, plan, sample
from claims.parts import EDM, Cosine, Denoiser, GaussianMixture, Noise, Prediction
from claims.trained import MLP, CoordinateDenoiser, NetworkDenoiser, fit, fresh
from fewstep.conditions.picture import Picture
from fewstep.data.digits import load
from fewstep.denoisers.coordinates import sample_as_data
from fewstep.processes.function_noise import FunctionNoise, covariance, factor
from fewstep.processes.multiplicative import Multiplicative, gamma_level, speckled
from fewstep.processes.spatial_noise import SpatialNoise, noise_map

N = 12  # observation times a function
KERNEL, LENGTH = "rbf", 0.2  # of the functions; the noise is the rougher "ou" of the same length
JITTER = 1e-6
SAMPLES = 1000
ABOUT = (
    f"functions of an {KERNEL} kernel at {N} irregular times, perceptron of width 128, {1500 * 128} functions seen,"
    f" noise ou against white, dpmpp-2m with 10 evaluations"
)
GRID = (torch.arange(N, dtype=F64) + 0.5) / N  # new times: the middles of equal cells, where exact samples are at hand
SHAPE = (1, 8, 8)
SIGMA, LOOKS = 0.5, 4.0
STEPS, BATCH, NFE = 800, 64, 5
RIVALS = {
    "an additive-noise diffusion": "additive-noise diffusion at the noise's root mean square",
    "a median filter": "median filter 3 x 3",
}
READ, SHOT = 0.15, 0.25
THEIR_NFE = 20


def _functions(times: Tensor, generator: torch.Generator) -> Tensor:
    lower = factor(covariance(times, KERNEL, LENGTH, JITTER))
    return (lower @ torch.randn(*times.shape, 1, generator=generator, dtype=F64))[..., 0]


@functools.cache
def _of_functions(kernel: str, seed: int, rows: int) -> NetworkDenoiser:
    """Trained on functions at random times; with 3 rows, some of their values are known (values, and where)."""
    network, conditions = fresh(MLP, seed, (N,), width=128, depth=3, picture=rows * N), {"y": Picture((rows, N))}
    model = CoordinateDenoiser(network, Cosine(), FunctionNoise(kernel, LENGTH), "v", (N,), conditions)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        times = torch.rand(count, N, generator=generator, dtype=F64).sort(-1).values
        values = _functions(times, generator)
        y = times[:, None]
        if rows == 3:
            known = (torch.rand(count, N, generator=generator) < 0.4).double()
            y = torch.stack([times, values * known, known], 1)
        return model.encode(values, y=y).float(), {"y": y}

    return fit(model, draw, steps=1500, batch=128, lr=2e-3, seed=seed)


def _sampled(model: NetworkDenoiser, n: int, seed: int, y: Tensor) -> Tensor:
    made = plan(model.process, "dpmpp-2m", timesteps="log-snr", nfe=10)
    return sample(model, n, plan=made, seed=seed, batch_size=2000, y=y).double()


@functools.cache
def _drawn(kernel: str, seed: int) -> Tensor:
    return _sampled(_of_functions(kernel, seed, 1), SAMPLES, seed, GRID.expand(SAMPLES, 1, N))


def _energy(kernel: str, seed: int) -> float:
    """Energy distance from exact functions, its unbiased estimate: the root of 2 E|a - b| - E|a - a'| - E|b - b'|."""
    a = _drawn(kernel, seed)
    b = _functions(GRID.expand(4 * SAMPLES, N), torch.Generator().manual_seed(seed + 100))
    own = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return math.sqrt(max(float(2 * torch.cdist(a, b).mean() - own[0] - own[1]), 0.0))


def _increment_error(kernel: str, seed: int) -> float:
    """Mean relative error of the variance of the differences of neighbours, whose true value the kernel gives."""
    wanted = 2 * (1 - covariance(GRID, KERNEL, LENGTH, JITTER)[0, 1])
    return float((_drawn(kernel, seed).diff(dim=1).var(0) / wanted - 1).abs().mean())


def _crps(draws: Tensor, truth: Tensor) -> Tensor:
    """Of samples `(n, ...)` at `(...)`: E|X - truth| - E|X - X'| / 2."""
    n, ordered = len(draws), draws.sort(0).values
    rank = (2 * torch.arange(1, n + 1, dtype=draws.dtype) - n - 1).reshape(-1, *[1] * truth.ndim)
    return (draws - truth).abs().mean(0) - (rank * ordered).sum(0) / n**2


@functools.cache
def _imputed(seed: int) -> tuple[float, float, float]:
    """CRPS at the unknown points of 40 functions, 32 draws each: with correlated noise, white noise, and exactly."""
    functions, draws, generator = 40, 32, torch.Generator().manual_seed(seed + 200)
    times = torch.rand(functions, N, generator=generator, dtype=F64).sort(-1).values
    values, known = _functions(times, generator), torch.zeros(functions, N, dtype=F64)
    known[:, ::3] = 1  # four of twelve
    y = torch.stack([times, values * known, known], 1)
    unknown, scores = known[0] == 0, []
    for kernel in ("ou", "white"):
        found = _sampled(_of_functions(kernel, seed, 3), functions * draws, seed, y.repeat(draws, 1, 1))
        scores.append(float(_crps(found.reshape(draws, functions, N), values)[:, unknown].mean()))
    k = covariance(times, KERNEL, LENGTH, JITTER)
    gain = torch.linalg.solve(k[:, ~unknown][:, :, ~unknown], k[:, ~unknown][:, :, unknown]).mT
    mean = (gain @ values[:, ~unknown, None])[..., 0]
    spread = k[:, unknown][:, :, unknown] - gain @ k[:, ~unknown][:, :, unknown]
    noise = Noise(seed).normal(0, (draws * functions, 8), "cpu", F64).reshape(draws, functions, 8, 1)
    exact = mean + (factor(spread + 1e-9 * torch.eye(8, dtype=F64)) @ noise)[..., 0]
    return scores[0], scores[1], float(_crps(exact, values[:, unknown]).mean())


def _new_grid(figure: Callable[[str, int], float], unit: str) -> Run:
    """Samples at times that training did not see."""
    return arms(figure, "ou", "white", "white noise", f"{ABOUT}, {SAMPLES} samples on a new grid", unit=unit)


def _imputation(seed: int) -> Outcome:
    exact = sum(_imputed(s)[2] for s in (seed, seed + 1, seed + 2)) / 3
    about = f"{ABOUT}, 4 of {N} values given, 40 functions; the exact posterior has {exact:.3f}"
    return over_seeds(lambda s: _imputed(s)[:2], "white noise", about, unit="CRPS")(seed)


def _identity(seed: int) -> Outcome:
    times = torch.rand(64, N, generator=torch.Generator().manual_seed(seed), dtype=F64)
    data = Noise(seed).normal(0, (64, N), "cpu", F64)
    rough = FunctionNoise("ou", LENGTH)
    unchanged = float((FunctionNoise("white").decode(data, {"y": times}) - data).abs().max())
    back = rough.decode(rough.encode(data, {"y": times}), {"y": times})
    about = f"white noise changes nothing ({unchanged:.1g}), and ou coordinates invert, 64 irregular grids of {N} times"
    return tolerance(max(unchanged, float((back - data).abs().max())), 1e-9, about, "largest difference")


def _positive(split: str) -> Tensor:
    """Digits with ink from 0.05 to 1."""
    return 0.05 + 0.95 * (load(split)[0] + 1) / 2


@functools.cache
def _trained(kind: str, seed: int) -> NetworkDenoiser:
    """On logarithms, or on the digits themselves with noise that is added; noise levels uniform up to 1 in both."""
    network, process = fresh(MLP, seed, SHAPE, width=192, depth=3), EDM(0.01, 1.0)
    states = _positive("train").log() if kind == "multiplicative" else _positive("train")
    options: dict[str, Any] = {"precondition": "edm", "data_std": float(states.std())}
    if kind == "multiplicative":
        model: NetworkDenoiser = CoordinateDenoiser(network, process, Multiplicative(), "x0", SHAPE, **options)
    else:
        model = NetworkDenoiser(network, process, "x0", SHAPE, **options)
    return fit(model, states, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)


def _psnr(found: Tensor, clean: Tensor) -> float:
    """In dB, of pictures whose brightest value is 1."""
    return float(-10 * torch.log10((found.clamp(0, 1) - clean).square().mean()))


def _observed(speckle: str, seed: int) -> tuple[Tensor, Tensor, float, float]:
    """Clean and noisy digits, and the standard deviation and mean of the noise's logarithm."""
    clean = _positive("validation")
    if speckle == "lognormal":
        normal = Noise(seed + 400).normal(0, tuple(clean.shape))
        return clean, speckled(clean, SIGMA, normal), SIGMA, -0.5 * SIGMA**2
    normals = Noise(seed + 400).normal(0, (len(clean), 2 * int(LOOKS), 8, 8))
    # A gamma variable with L looks is the mean of 2 L squared normals.
    return clean, clean * normals.square().mean(1, keepdim=True), *gamma_level(LOOKS)


@functools.cache
def _psnrs(speckle: str, seed: int) -> dict[str, float]:
    """Of the logarithm's diffusion ("ours"), of the additive one, and of the median filter."""
    from scipy.ndimage import median_filter

    clean, noisy, sigma, mean = _observed(speckle, seed)
    ours, theirs = (_trained(kind, seed) for kind in ("multiplicative", "additive"))
    assert isinstance(ours, CoordinateDenoiser) and isinstance(ours.coordinates, Multiplicative)
    # The additive process starts at the noise's own root mean square, which the training data and its law give.
    relative = math.expm1(sigma**2) if speckle == "lognormal" else 1 / LOOKS
    level = math.sqrt(float(_positive("train").square().mean()) * relative)
    levels = ([top * (1 - i / NFE) for i in range(NFE + 1)] for top in (sigma, level))
    made, other = (plan(ours.process, "ddim", timesteps=times) for times in levels)
    median = torch.from_numpy(median_filter(noisy.numpy(), size=(1, 1, 3, 3), mode="nearest"))
    state = ours.coordinates.state(noisy, sigma, mean)
    found = (sample_as_data(ours, made, state), sample_as_data(theirs, other, noisy), median)
    return {name: _psnr(x, clean) for name, x in zip(("ours", *RIVALS), found, strict=True)}


def _against(speckle: str, rival: str) -> Run:
    law = f"lognormal speckle of sigma {SIGMA}" if speckle == "lognormal" else f"gamma speckle of {LOOKS:g} looks"
    about = f"360 digits with {law}, perceptron of width 192, {STEPS * BATCH} images seen, ddim, {NFE} evaluations"

    def figure(arm: str, s: int) -> float:
        return _psnrs(speckle, s)[arm]

    return arms(figure, "ours", rival, RIVALS[rival], about, better="high", unit="PSNR in dB")


class _Exact(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.process = EDM(0.002, 5.0)
        means, variances = torch.tensor([[-1.0], [0.6]]), torch.tensor([[0.05], [0.2]])
        self.exact = GaussianMixture(torch.tensor([0.4, 0.6]), means, variances, self.process)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Prediction:
        return self.exact(x, t)

    def decode(self, x: Tensor, **condition: Tensor) -> Tensor:
        return Multiplicative().decode(x, {})


def _posterior(seed: int) -> Outcome:
    """E[x0 | y] of a lognormal mixture in closed form, against the mean of restored samples."""
    model, sigma, noisy, n = _Exact(), 0.9, 1.0, 8000
    state = Multiplicative().state(torch.full((n, 1), noisy, dtype=F64), sigma)
    made = plan(model.process, "dpmpp-2m-sde", timesteps=[sigma * (1 - i / 40) ** 2 for i in range(41)])
    found = float(sample_as_data(model, made, state, seed=seed).mean())
    m, v = torch.tensor([-1.0, 0.6], dtype=F64), torch.tensor([0.05, 0.2], dtype=F64)
    z, total = math.log(noisy) + 0.5 * sigma**2, v + sigma**2
    share = torch.softmax(torch.tensor([0.4, 0.6], dtype=F64).log() - 0.5 * ((z - m) ** 2 / total + total.log()), 0)
    exact = float((share * (m + v / total * (z - m) + 0.5 * v * sigma**2 / total).exp()).sum())
    about = f"mean of {n} restored samples {found:.4f}, exact posterior mean {exact:.4f}; 2-component lognormal"
    about += " mixture, dpmpp-2m-sde, 40 steps"
    return tolerance(abs(found / exact - 1), 0.02, about, "relative error")


def observed(data: Tensor, normal: Tensor) -> Tensor:
    """Noisy digits and their maps `(B, 2, 8, 8)`: the noise follows the true signal, the map the noisy one."""
    noisy = data + noise_map((data + 1) / 2, READ, SHOT) * normal
    return torch.cat([noisy, noise_map((noisy + 1) / 2, READ, SHOT)], 1)


@functools.cache
def _denoiser(kind: str, seed: int) -> NetworkDenoiser:
    data, conditions = load("train")[0], {"y": Picture((2, 8, 8))}
    network = fresh(MLP, seed, SHAPE, width=192, depth=3, picture=128)
    model = NetworkDenoiser(network, Cosine(), "v", SHAPE, conditions)
    if kind == "spatial":
        process, coordinates = EDM(0.005, 1.0), SpatialNoise()
        model = CoordinateDenoiser(network, process, coordinates, "eps", SHAPE, conditions, value_range=None)

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = data[torch.randint(len(data), (count,), generator=generator)]
        y = observed(x0, torch.randn(x0.shape, generator=generator))
        return model.encode(x0, y=y), {"y": y}

    return fit(model, draw, steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)


def psnr(found: Tensor, clean: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (found.clamp(-1, 1) - clean).square().mean()))


def _pair(seed: int) -> tuple[float, float]:
    clean, _ = load("validation")
    y = observed(clean, Noise(seed + 300).normal(0, tuple(clean.shape)))
    ours, theirs = (_denoiser(kind, seed) for kind in ("spatial", "global"))
    assert isinstance(ours, CoordinateDenoiser) and isinstance(ours.coordinates, SpatialNoise)
    made = plan(ours.process, "ddpm", timesteps="log-snr", nfe=NFE)
    other = plan(theirs.process, "ddpm", timesteps="uniform", nfe=THEIR_NFE)
    found = sample_as_data(ours, made, ours.coordinates.start(y), seed=seed, y=y)
    return psnr(found, clean), psnr(sample(theirs, len(y), plan=other, seed=seed, batch_size=len(y), y=y), clean)


def _digits(seed: int) -> Outcome:
    about = f"{NFE} evaluations of ddpm from the noisy picture, 360 digits with noise sqrt({READ}^2 + {SHOT} signal),"
    about += f" perceptron of width 192, {STEPS * BATCH} images seen by each"
    against = f"conditional diffusion from pure noise, one time for all pixels, {THEIR_NFE} evaluations"
    return over_seeds(_pair, against, about, better="high", unit="PSNR in dB")(seed)


class _StandardNormal(nn.Module):
    """eps of standard normal data, by the map of the noise left or, without one, by the level."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
        level = noise.reshape(-1, 1, 1, 1) if y is None else y[:, 1:]
        return self.one * level * x / (1 + level**2)


def _constant(seed: int) -> Outcome:
    level, coordinates = 0.4, SpatialNoise()
    model = CoordinateDenoiser(_StandardNormal(), EDM(0.005, 1.0), coordinates, "eps", SHAPE, {"y": Picture((2, 8, 8))})
    plain = NetworkDenoiser(_StandardNormal(), EDM(0.005 * level, level), "eps", SHAPE)
    noisy = Noise(seed).normal(0, (16, *SHAPE), "cpu", F64)
    y = torch.cat([noisy, torch.full_like(noisy, level)], 1)
    times = [1.0, 0.7, 0.3, 0.1, 0.0]
    ours = sample_as_data(model, plan(model.process, "ddpm", timesteps=times), coordinates.start(y), seed=seed, y=y)
    theirs = sample_as_data(plain, plan(plain.process, "ddpm", timesteps=[level * t for t in times]), noisy, seed=seed)
    about = f"a map of {level} everywhere against one time for all pixels, ddpm, 4 steps, 16 pictures"
    return tolerance(float((ours - theirs).abs().max()), 1e-6, about, "largest difference")


CLAIMS = (
    Claim("function-noise", "is the base process for white noise, and inverts for a rough one", _identity),
    slow("function-noise", "functions on a new grid are nearer the truth than with white noise",
         _new_grid(_energy, "energy distance")),
    slow("function-noise", "increments vary more as the truth's than with white noise",
         _new_grid(_increment_error, "relative error of the increments' variance")),
    slow("function-noise", "fills in functions with a lower CRPS than with white noise", _imputation),
    Claim("multiplicative-noise", "the mean of restored samples is the exact posterior mean", _posterior),
    *(slow("multiplicative-noise", f"removes {speckle} speckle from digits better than {rival}",
           _against(speckle, rival)) for speckle in ("lognormal", "gamma") for rival in RIVALS),
    Claim("spatial-noise", "a constant map is the process with one time for all pixels", _constant),
    slow("spatial-noise", f"restores digits better in {NFE} evaluations than a conditional diffusion in {THEIR_NFE}",
         _digits),
)  # fmt: skip
