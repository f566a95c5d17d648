"""Claims of the denoisers in closed form, and of how any other is wrapped and checked."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from claims.bridges import law
from claims.claim import Claim, Outcome, compared, slow, tolerance
from claims.common import ENDPOINT, F64, gap, plan, sample
from claims.parts import EDM, VP, GaussianMixture, Noise
from claims.problems import MIXTURE_SEED, digits, mixture, problem, wide
from claims.trained import MLP, fit, fresh
from fewstep.core.prediction import KINDS
from fewstep.data.digits import load as load_digits
from fewstep.denoisers.checks import check_denoiser
from fewstep.denoisers.cluster_experts import ClusterExperts
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.fixed import Fixed
from fewstep.denoisers.pfgmpp import PoissonDataset
from fewstep.denoisers.reflected import ReflectedDataset, ReflectedDensity, ReflectedNetwork
from fewstep.denoisers.wrap import Wrapped, wrap
from fewstep.hub.models import load as load_model
from fewstep.metrics.accuracy import class_accuracy
from fewstep.processes.ddbm import DDBM
from fewstep.processes.pfgmpp import PFGMpp
from fewstep.processes.reflected import Reflected
from fewstep.processes.resfusion import Resfusion
from fewstep.processes.resshift import ResShift

STATED_KINDS = ("x0", "eps", "v", "velocity", "-eps", "-v")
DATA = 128
TIMES = (0.02, 0.2, 0.5, 0.9)
MIXTURE_TIMES = (0.01, 0.1, 0.3, 0.6, 1.0)
PROCESS = Reflected()


def _as(exact: GaussianMixture, truth: str, said: str) -> Wrapped:
    def f(x: Tensor, t: Tensor) -> Tensor:
        value = exact(x, t.double()).to(truth.lstrip("-"))
        return -value if truth.startswith("-") else value

    return wrap(f, exact.process, said, exact.shape)


def _named(seed: int) -> Outcome:
    """Over all pairs of a true and another stated convention."""
    exact = wide(VP())
    data, good = exact.sample(DATA, seed), []
    for truth, said in itertools.permutations(STATED_KINDS, 2):
        report = check_denoiser(_as(exact, truth, said), data, seed=seed)
        good.append(not report.ok and report.advice.startswith(f"looks like predicts={truth!r}:"))
    about = f"all pairs of {', '.join(STATED_KINDS)} on an exact mixture under VP, {DATA} data"
    unit = "share of wrong pairs whose right kind is named"
    return Outcome(sum(good) / len(good), 1 / (len(STATED_KINDS) - 1), "a guess among the others", about, "high", unit)


def _accused(seed: int) -> Outcome:
    exact = wide(VP())
    data = exact.sample(DATA, seed)
    bad = [not check_denoiser(_as(exact, kind, kind), data, seed=seed).ok for kind in STATED_KINDS]
    about = f"each of {', '.join(STATED_KINDS)} stated rightly on an exact mixture under VP, {DATA} data"
    return Outcome(sum(bad) / len(bad), 0.05, "a tolerance", about, unit="share of right ones accused")


def _brute_force(seed: int) -> Outcome:
    images, labels = (part[:200] for part in load_digits("train"))
    data, process, worst, label = images.double(), VP(), 0.0, torch.arange(8) % 10
    model = DatasetDenoiser(data, process, labels)
    for t in TIMES:
        x = process.alpha(t) * data[:8] + process.sigma(t) * Noise(seed).normal(0, (8, 1, 8, 8), "cpu", F64)
        found = model(x, torch.tensor(t, dtype=F64), label=label).x0
        for i in range(8):
            chosen = [j for j in range(len(data)) if int(labels[j]) == int(label[i])]
            squares = [float((x[i] - process.alpha(t) * data[j]).square().sum()) for j in chosen]
            weights = [math.exp(-(s - min(squares)) / (2 * process.sigma(t) ** 2)) for s in squares]
            mean = sum(w * data[j] for w, j in zip(weights, chosen, strict=True)) / sum(weights)
            worst = max(worst, float((found[i] - mean).abs().max()))
    about = f"200 digits with labels, vp, t in {TIMES}, 8 points each, against sums in Python"
    return tolerance(worst, 1e-9, about, "largest difference")


def _optimal(seed: int) -> Outcome:
    """Nothing denoises the training data better; the embedded network, which generalises, must be above it."""
    images, labels = (part[:256] for part in load_digits("train"))
    process, errors = EDM(), []
    for model in (DatasetDenoiser(load_digits("train")[0], process, load_digits("train")[1]), load_model("digits")):
        total = 0.0
        for t in (0.2, 0.5, 1.0, 2.0):
            x = images + process.sigma(t) * Noise(seed).normal(0, (256, 1, 8, 8))
            with torch.no_grad():
                x0 = model(x, torch.full((256,), t), label=labels).x0
            total += float((x0 - images).square().mean())
        errors.append(total / 4)
    about = "256 training digits with labels, sigma 0.2, 0.5, 1 and 2"
    return compared(errors, "the embedded network", about, unit="mean squared error of x0")


def _coarse() -> GaussianMixture:
    """One Gaussian with the mixture's mean and covariance: right in the noise, wrong near the data."""
    x = mixture(VP()).sample(20_000, MIXTURE_SEED)
    centred = x - x.mean(0)
    return GaussianMixture(torch.ones(1), x.mean(0)[None], (centred.T @ centred / len(x))[None], VP())


def _routes(seed: int) -> Outcome:
    """The coarse denoiser above t = 0.7 and the exact one below, against the coarse one alone."""
    on, made = problem(VP(), seed), plan(VP(), "dpmpp-3m", 20, "log-snr")
    models = (Experts([mixture(VP()), _coarse()], (0.7,)), _coarse())
    errors = [gap(on.run(made, model), on.reference) for model in models]
    about = "one Gaussian above t = 0.7, the exact denoiser below; dpmpp-3m, 20 evaluations"
    return compared(errors, "the coarse denoiser alone, 20 evaluations", about, unit=ENDPOINT)


def _law(seed: int) -> Outcome:
    processes = (DDBM(), ResShift(eta_max=1.0), Resfusion())
    found = {p.name: max(law(p, plan(p, "vab-4", 100, "karras"), seed)) for p in processes}
    about = "mean and covariance of x0 given y after 100 steps of vab-4 against the closed form: "
    about += ", ".join(f"{name} {value:.1g}" for name, value in found.items())
    return tolerance(max(found.values()), 1e-3, about, "relative error")


def _score(seed: int) -> Outcome:
    model, process, worst = mixture(VP()), VP(), 0.0
    for t in MIXTURE_TIMES:
        x = process.alpha(t) * model.sample(256, seed) + process.sigma(t) * Noise(seed).normal(0, (256, 2), "cpu", F64)
        x.requires_grad_(True)
        time = torch.tensor(t, dtype=F64)
        (wanted,) = torch.autograd.grad(model.log_likelihood(x, time).sum(), x)
        score = model(x.detach(), time).score
        worst = max(worst, float(((score - wanted).norm(dim=1) / wanted.norm(dim=1).mean()).max()))
    about = f"8-component mixture, vp, t in {MIXTURE_TIMES}, 256 points each"
    return tolerance(worst, 1e-9, about, "largest relative difference")


def _samples(seed: int) -> Outcome:
    model, n = mixture(VP()), 20_000
    x, vectors = model.sample(n, seed), model.basis.view(2, 8, 2).permute(1, 0, 2)
    second = vectors @ torch.diag_embed(model.variances) @ vectors.mT + model.means[:, :, None] * model.means[:, None]
    statistics = torch.cat((x, (x[:, :, None] * x[:, None]).flatten(1)), 1)
    wanted = torch.cat((model.means.mean(0), second.mean(0).flatten()))
    scores = (statistics.mean(0) - wanted) / (statistics.std(0) / n**0.5)
    about = f"{n} samples of the 8-component mixture, first and second moments"
    return tolerance(float(scores.abs().max()), 4.0, about, "largest difference, in standard errors")


def _limit(seed: int) -> Outcome:
    data = load_digits("train")[0][:256].double()
    ours, edm, worst = PoissonDataset(data, PFGMpp(degrees=1e6)), DatasetDenoiser(data, EDM()), 0.0
    for sigma in (0.1, 1.0, 10.0, 80.0):
        x, t = data[:16] + sigma * Noise(seed).normal(0, (16, 1, 8, 8), "cpu", F64), torch.tensor(sigma, dtype=F64)
        worst = max(worst, float((ours(x, t).x0 - edm(x, t).x0).abs().max()))
    return tolerance(worst, 1e-3, "D = 1e6, 256 digits, sigma 0.1, 1, 10 and 80", "largest difference from EDM's")


def _data(seed: int) -> Outcome:
    data, worst = load_digits("train")[0][:64].double(), 0.0
    for degrees in (2.0, 64.0, 2048.0, None):
        model = PoissonDataset(data, PFGMpp(degrees=degrees))
        x = sample(model, 256, steps=18, solver="heun", timesteps="karras", seed=seed, dtype=F64)
        nearest = torch.cdist(x.flatten(1), data.flatten(1)).min(1).values
        worst = max(worst, float(nearest.quantile(0.99)))
    about = "D = 2, 64, 2048 and infinity, 64 digits, 256 samples each, heun with 18 karras steps"
    return tolerance(worst, 1e-3, about, "99th percentile of the distance from the nearest datum, largest of the four")


def _density() -> ReflectedDensity:
    n = math.pi * torch.arange(1, 31, dtype=F64)
    return ReflectedDensity((2 * (-0.5 * (0.1 * n) ** 2).exp()).expand(3, -1), PROCESS)


def _reflected_score(seed: int) -> Outcome:
    data = torch.rand(20, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    model, worst = ReflectedDataset(data, PROCESS), 0.0
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=F64).requires_grad_(True)
    for t in (0.2, 0.5, 0.8, 1.0):
        time = torch.tensor(t, dtype=F64)
        logs = PROCESS.kernel(y.unsqueeze(1), data, PROCESS.sigma(time))[0].sum(-1).logsumexp(1)
        eps = -PROCESS.sigma(time) * torch.autograd.grad(logs.sum(), y)[0]
        worst = max(worst, float((model(y.detach(), time).eps - eps).abs().max()))
    return tolerance(worst, 1e-9, "20 points in three dimensions, four noise levels, against autograd", "error of eps")


def _steps(seed: int) -> Outcome:
    """Root mean square difference of the samples' quantiles from the exact ones."""

    def error(steps: int) -> float:
        x = sample(_density(), 4000, steps=steps, solver="ddpm", seed=seed, batch_size=4000, dtype=F64)
        shares = torch.linspace(0, 1, 4002, dtype=F64)[1:-1, None].expand(-1, 3)
        return float((_density().cumulative(x.sort(0).values) - shares).square().mean().sqrt())

    about, unit = "32 steps of ddpm, exact score, heap at a wall", "error of the distribution function"
    return Outcome(error(32), error(8), "8 steps", about, unit=unit)


def _walls(seed: int) -> Outcome:
    """Of a barely trained network, whose score is wrong: how many samples leave the range of the data."""
    network = fresh(MLP, seed, (3,), width=32, depth=2)
    made = ReflectedNetwork(network, PROCESS, shape=(3,), value_range=(0.0, 1.0))
    trained = fit(made, _density().sample(2000, seed).float(), steps=50, batch=128, lr=3e-3, seed=seed)
    x = sample(trained, 2000, steps=10, seed=seed, batch_size=2000)
    outside = float(((x < 0) | (x > 1)).any(1).double().mean())
    about = "mlp, 50 steps of training, 2000 samples of 10 evaluations"
    return tolerance(outside, 1e-9, about, "share of samples outside")


def _same(seed: int) -> Outcome:
    """Largest difference of samples between a denoiser and itself as a function of each kind and time."""
    exact = wide(EDM())
    noise = Noise(seed).normal(0, (16, *exact.shape), "cpu", F64)
    made = plan(exact.process, "dpmpp-2m", steps=8, timesteps="karras")
    wanted, worst = made(exact, noise, dtype=F64), 0.0
    for kind in KINDS:

        def f(x: Tensor, u: Tensor, kind: str = kind) -> Tensor:  # EDM's c_noise, to full precision
            return exact(x, (4 * u).exp()).to(kind)

        drawn = made(wrap(f, exact.process, kind, exact.shape, time="c_noise"), noise, dtype=F64)
        worst = max(worst, float((drawn - wanted).abs().max()))
    about = "a mixture in twelve dimensions as a function of c_noise that answers each of six kinds, 8 steps of"
    about += " dpmpp-2m"
    return Outcome(worst, 1e-9, "a tolerance", about, unit="largest difference of 16 samples")


def _fixed(seed: int) -> Outcome:
    """Samples of the model under a label, and of the wrapper without one."""
    on, differ = problem("digits", seed, 8), 0
    made = plan(on.model.process, "dpmpp-2m", 6)
    for label in (0, 3, 9):
        differ += int((made(Fixed(on.model, label=label), on.noise) != made(on.model, on.noise, label=label)).sum())
    return tolerance(
        differ, 0.5, "embedded digits, labels 0, 3 and 9, 8 noises each, dpmpp-2m, 6 steps", "values that differ"
    )


def _of_its_class(seed: int) -> Outcome:
    """Samples drawn by who knows of no label, as searches and measures do."""
    on, label = digits(seed), 3
    models = (Fixed(on.model, label=label), on.model)
    figures = [class_accuracy(sample(model, 64, steps=6, seed=seed), label).value for model in models]
    about = f"embedded digits, fixed to {label}, 64 samples of 6 evaluations, no label given"
    return compared(figures, "the model itself", about, "high", "class accuracy")


def _global(seed: int) -> Outcome:
    """Experts of parts of a mixture's components, and the exact posterior of the part, in every kind."""
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    weights, means = (
        0.5 + torch.rand(6, generator=generator, dtype=F64),
        torch.randn(6, 3, generator=generator, dtype=F64),
    )
    parts = ([0, 3], [1], [2, 4, 5])
    for process in (VP(), EDM()):
        for predicts in ("x0", "eps"):
            whole = GaussianMixture(weights, means, 0.09, process, predicts)
            experts = [GaussianMixture(weights[p], means[p], 0.09, process, predicts) for p in parts]
            mixed = ClusterExperts(experts, [float(weights[p].sum()) for p in parts])
            for share in MIXTURE_TIMES:
                t = torch.tensor(process.t_min + share * (process.t_max - process.t_min), dtype=F64)
                eps = torch.randn(DATA, 3, generator=generator, dtype=F64)
                x = process.alpha(t) * whole.sample(DATA, seed) + process.sigma(t) * eps
                for kind in ("x0", "eps", "velocity"):
                    exact = whole(x, t).to(kind)
                    gap_ = (mixed(x, t).to(kind) - exact).abs().max() / exact.abs().max()
                    worst = max(worst, float(gap_))
    about = f"6 components in 3 clusters, vp and edm, {len(MIXTURE_TIMES)} times; x0, eps and velocity"
    return tolerance(worst, 1e-10, about, "largest relative error")


CLAIMS = (
    slow("check-denoiser", "a wrong kind or sign is found and the right one named", _named),
    slow("check-denoiser", "a right one is not accused", _accused),
    Claim("cluster-experts", "exact experts and an exact posterior are the model of all data", _global),
    Claim("dataset", "is the weighted mean over the data, with labels the class's", _brute_force),
    slow("dataset", "denoises its own data better than a network trained on them", _optimal),
    Claim("experts", "a coarse expert in the noise and an exact one near the data do well together", _routes),
    Claim("fixed", "gives the bits of the model under its condition", _fixed),
    Claim("fixed", "draws its class for those that give no condition", _of_its_class),
    Claim("gaussian-bridge", "its denoiser leads to its own law of x0 given y", _law),
    Claim("gaussian-mixture", "its score is the gradient of its log-likelihood", _score),
    Claim("gaussian-mixture", "its samples have its first and second moments", _samples),
    Claim("pfgmpp-dataset", "is EDM's denoiser at D = 1e6", _limit),
    slow("pfgmpp-dataset", "leads to the data at every D", _data),
    Claim("reflected-dataset", "equals the gradient of the log density of its kernels", _reflected_score),
    Claim("reflected-density", "more steps of the reverse SDE come closer to the density", _steps),
    slow("reflected-network", "no sample leaves the walls, however poor the network", _walls),
    Claim("wrap", "a function of another kind and time draws the same samples", _same),
)  # fmt: skip
