"""Claims of the denoisers with a network inside."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from claims.bridges import DATA, D, between, learned, pairs
from claims.claim import Claim, Outcome, arms, compared, experiment, slow, tolerance
from claims.common import F64, SLICED, plan
from claims.objectives import ABOUT_CHAIN, PROCESS, few_step_distance, hybrid, mean_alone
from claims.parts import EDM, VP, Flow, GaussianMixture, Noise
from claims.problems import digits, mixture
from claims.restored import ARMS, DIFFUSION, against_diffusion
from claims.trained import MLP, CoordinateDenoiser, NetworkDenoiser, NoiseLevels, fit, fresh, rows_of
from fewstep.data.digits import load
from fewstep.denoisers.bridge import BridgeDenoiser, statistics
from fewstep.denoisers.coordinates import DCT
from fewstep.denoisers.interpolant import MixtureInterpolant
from fewstep.denoisers.learned_variance import reverse_step
from fewstep.denoisers.masked import MaskedDenoiser, flops, skippable
from fewstep.denoisers.restorer import Restorer
from fewstep.processes.ddbm import DDBM
from fewstep.processes.interpolants import Interpolant
from fewstep.processes.restoration_chain import RestorationChain

STEPS, BATCH = 500, 256
BRIDGE_PROCESS = DDBM(EDM(sigma_max=10.0))
BUDGET = "in 5 evaluations than a conditional diffusion, each by its best solver"
SHAPE = (1, 8, 8)
SIGMAS = (0.002, 0.02, 0.2, 0.5, 1.0, 3.0, 10.0, 80.0)


@functools.cache
def _error(precondition: str, seed: int) -> float:
    """Mean squared error against the exact denoiser, over what y leaves open, levels uniform in log-SNR."""
    exact = pairs(BRIDGE_PROCESS)
    x0, y = (value.float() for value in exact.sample(20_000, 0))
    found = statistics(x0, y) if precondition == "bridge" else {}
    network = fresh(MLP, seed, (D,), picture=D)
    model = BridgeDenoiser(network, BRIDGE_PROCESS, precondition=precondition, shape=(D,), **found)
    levels = NoiseLevels(BRIDGE_PROCESS, "log-normal", mean=0.0, std=1.5)
    model = fit(model, rows_of(x0, y=y), steps=STEPS, batch=BATCH, lr=3e-3, seed=seed, levels=levels)
    x0, y = (value.float() for value in exact.sample(4096, 1))
    generator = torch.Generator().manual_seed(2)
    t = levels.quantile(torch.rand(4096, generator=generator, dtype=F64))
    eps = torch.randn(x0.shape, generator=generator)
    u = (BRIDGE_PROCESS.alpha(t)[:, None] * x0 + BRIDGE_PROCESS.sigma(t)[:, None] * eps).float()
    with torch.no_grad():
        return float((model(u, t, y=y).x0 - exact(u, t, y=y).x0).square().mean())


def _correlation(data: Tensor) -> float:
    """Mean square of the correlations between different elements."""
    correlations = data.flatten(1).double().T.corrcoef().nan_to_num()
    n = len(correlations)
    return float((correlations.square().sum() - correlations.diagonal().square().sum()) / (n * (n - 1)))


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return (self.scale + noise.to(x).reshape(-1, 1, 1, 1)) * x


def _parity(seed: int) -> Outcome:
    """A linear network commutes with an orthonormal transform, so nothing may change but the basis."""
    network, dct, made = _Linear(), DCT(SHAPE), plan(VP(), "dpmpp-2m", 8)
    noise = Noise(seed).normal(0, (16, *SHAPE), "cpu", F64)
    ours = CoordinateDenoiser(network, VP(), dct, shape=SHAPE)
    found = ours.decode(made(ours, dct.encode(noise, {}), dtype=F64))
    wanted = made(NetworkDenoiser(network, VP(), shape=SHAPE), noise, dtype=F64)
    about = "cosine transform against pixels, a linear network, dpmpp-2m, 8 steps, 16 noises"
    off = float((found - wanted).abs().max() / wanted.abs().max())
    return tolerance(off, 1e-9, about, "largest relative difference")


def _one_sided(seed: int) -> Outcome:
    normal = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, Flow())
    model = MixtureInterpolant.independent(DATA, normal, Interpolant())
    x, t = torch.randn(99, 2, generator=torch.Generator().manual_seed(seed), dtype=F64), torch.linspace(0.01, 1, 99)
    worst = float((model(x, t.double()).velocity - DATA(x, t.double()).velocity).abs().max())
    return tolerance(worst, 1e-9, "three components, 99 points and times", "largest difference")


def _velocity_error(steps: int, seed: int) -> float:
    """v's error after so many steps of training, on states of the process at t from 0.02 to 0.98."""
    exact, n = between("linear", "brownian"), 4096
    x0, x1 = exact.sample_pairs(n, seed + 50)
    t = torch.linspace(0.02, 0.98, n, dtype=F64)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed + 60), dtype=F64)
    x = (1 - t).unsqueeze(1) * x0 + t.unsqueeze(1) * x1 + exact.process.gamma(t).unsqueeze(1) * z
    wanted = exact(x, t).velocity
    with torch.no_grad():
        found = learned(seed, steps)(x.float(), t).velocity.double()
    return float((found - wanted).square().mean() / wanted.var(0).mean())


def _bounds(seed: int) -> Outcome:
    process, a, worst = VP(), torch.linspace(0.1, 1, 91, dtype=F64), 0.0
    for stride in (0.01, 0.09):
        made, bar_a, bar_b = reverse_step(process, a, a - stride), process.alpha(a) ** 2, process.alpha(a - stride) ** 2
        beta = 1 - bar_a / bar_b
        found = ((made.small + made.span).exp(), made.small.exp(), made.x0)
        wanted = (beta, (1 - bar_b) / (1 - bar_a) * beta, bar_b.sqrt() * beta / (1 - bar_a))
        worst = max(worst, *(float((a / b - 1).abs().max()) for a, b in zip(found, wanted, strict=True)))
    return tolerance(worst, 1e-10, "beta, beta-tilde and mean, vp, two strides", "relative difference")


@torch.no_grad()
def _hooked(seed: int) -> Outcome:
    """Against forward hooks that give each block's input back, on every block in turn and all together."""
    on, t, worst = digits(seed, 8), torch.tensor(1.0), 0.0
    model, x, blocks = on.model, on.noise, skippable(on.model)
    for left_out in [*([name] for name in blocks), list(blocks)]:
        modules = [model.get_submodule(blocks[name]) for name in left_out]
        handles = [module.register_forward_hook(lambda module, given, output: given[0]) for module in modules]
        wanted = model(x, t, **on.condition).value
        for handle in handles:
            handle.remove()
        found = MaskedDenoiser(model, {1.0: left_out})(x, t, **on.condition).value
        worst = max(worst, float((found - wanted).abs().max()))
    made = plan(model.process, "ddim", 4, "karras")
    off = made(MaskedDenoiser(model, {}), x, **on.condition) - made(model, x, **on.condition)
    about = f"embedded digits, {len(blocks)} blocks left out in turn and together, and a plan without masks"
    return tolerance(max(worst, float(off.abs().max())), 1e-12, about, "largest difference")


def _cheaper(seed: int) -> Outcome:
    model = digits(seed, 8).model
    names = list(skippable(model))
    about = f"one evaluation of one sample of the embedded digits, without {', '.join(names)}"
    return Outcome(flops(model, names) / 1e6, flops(model) / 1e6, "every block", about, unit="million operations")


class _Constant(nn.Module):
    """A network that answers a constant, and keeps what it was asked."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=F64))
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.seen = x
        return self.value.expand_as(x)


def _denoiser(kind: str, value: float = 0.0) -> NetworkDenoiser:
    if kind == "edm":
        std = float(load("train")[0].std())
        return NetworkDenoiser(_Constant(value), EDM(), "x0", (1, 8, 8), precondition="edm", data_std=std)
    return NetworkDenoiser(_Constant(value), EDM(), kind, (1, 8, 8))


def _variances(kind: str, seed: int) -> float:
    """How far the variance of the network's input or target is from 1, as a factor, at worst."""
    data = load("train")[0].double()
    data = data - data.mean()
    eps, model, worst = Noise(seed).normal(0, tuple(data.shape), "cpu", F64), _denoiser(kind), 1.0
    for sigma in SIGMAS:
        _, target = model.loss_pair(data, eps, torch.full((len(data),), sigma, dtype=F64))
        assert isinstance(model.network, _Constant) and model.network.seen is not None
        for values in (target, model.network.seen):
            variance = float(values.var())
            worst = max(worst, variance, 1 / variance)
    return worst


def _unit_variance(seed: int) -> Outcome:
    figures, unit = (
        [_variances(kind, seed) for kind in ("edm", "eps")],
        "largest factor between 1 and the variance of input or target",
    )
    return compared(
        figures, "a plain network that predicts eps", f"digits about their mean, sigma in {SIGMAS}", unit=unit
    )


@torch.no_grad()
def _change(kind: str, sigma: float) -> float:
    """Largest change of x0 where the network's output changes by 1."""
    x, t = torch.zeros(1, 1, 8, 8, dtype=F64), torch.tensor(sigma, dtype=F64)
    return float((_denoiser(kind, 1.0)(x, t).x0 - _denoiser(kind, 0.0)(x, t).x0).abs().max())


@experiment
def _damped(seed: int, kind: str, sigmas: Sequence[float], unit: str) -> Outcome:
    """EDM's network against a plain one (for x0 near the data, where its error is the sample's own)."""
    figures = [max(_change(name, sigma) for sigma in sigmas) for name in ("edm", kind)]
    where = f"sigma in {sigmas}" if len(sigmas) > 1 else f"sigma = {sigmas[0]}"
    return compared(figures, f"a plain network that predicts {kind}", where, unit=unit)


def _calls(seed: int) -> Outcome:
    """Calls of the network for one batch of samples, less the levels of the chain."""
    chain = RestorationChain((0.7, 0.4, 0.2, 0.1), (0.1, 0.3, 0.5, 0.7))
    restorer = Restorer(fresh(MLP, seed, (D,), picture=2), chain, (D,), (2,))
    calls: list[int] = []
    handle = restorer.network.register_forward_hook(lambda *_: calls.append(1))
    restorer.sample(64, seed)
    handle.remove()
    return tolerance(
        abs(len(calls) - chain.levels), 0.5, f"{chain.levels} levels, 64 samples", "calls beside the levels"
    )


CLAIMS = (
    slow("bridge-network", "DDBM's preconditioning learns the exact denoiser faster",
         arms(_error, "bridge", "none", "the same network without preconditioning",
              f"Gaussian pairs, DDBM over edm to sigma 10, {STEPS} steps of {BATCH}",
              unit="mean squared error against the exact x0")),
    *(slow("bridge-network", f"under {arm} it deblurs digits better {BUDGET}", against_diffusion(arm))
      for arm in ARMS if arm != DIFFUSION),
    Claim("coordinates", "a change of basis changes nothing where it must not", _parity),
    Claim("dct", "decorrelates the digits",
          lambda seed: compared((_correlation(DCT(SHAPE).encode(load("train")[0], {})), _correlation(load("train")[0])),
                                "pixels", f"{len(load('train')[0])} digits", unit="mean squared correlation")),
    Claim("mixture-interpolant", "from the standard normal it is the Gaussian mixture's own denoiser", _one_sided),
    slow("interpolant-network", "nears the exact velocity as it trains",
         arms(_velocity_error, 800, 100, "100 steps",
              "800 steps of 256 pairs, mlp of width 48, velocity and latent noise, brownian latent",
              unit="squared error of the velocity, relative to its variance")),
    Claim("learned-variance", "its bounds are the paper's under a variance-preserving process", _bounds),
    slow("learned-variance", "samples better with an ODE solver than a network of the mean alone",
         arms(lambda trained, s: few_step_distance(trained(s), mixture(PROCESS), s, 10), hybrid, mean_alone,
              "a network of the mean alone", f"{ABOUT_CHAIN}; dpmpp-2m, 10 evaluations, 4096 samples", unit=SLICED)),
    Claim("masked", "blocks left out are identities; without masks it is the model bit for bit", _hooked),
    Claim("masked", "leaving blocks out saves operations", _cheaper),
    Claim("restoring-generator", "samples in one call of the network per level of its chain", _calls),
    Claim("network", "EDM's preconditioning keeps its input and its target near unit variance", _unit_variance),
    Claim("network", "EDM's preconditioning does not amplify the network's errors in the noise",
          _damped("eps", SIGMAS, "largest change of x0 per change of the output")),
    Claim("network", "EDM's preconditioning damps the network's errors near the data",
          _damped("x0", SIGMAS[:1], "change of x0 per change of the output")),
)  # fmt: skip
