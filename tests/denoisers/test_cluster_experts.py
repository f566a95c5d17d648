"""Experts of clusters: exactly the global model where both parts are exact; top-k runs only what it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.memory import Memory, ask
from fewstep.denoisers.cluster_experts import ClusterExperts, Router
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
PARTS = ([0, 3], [1], [2, 4, 5])  # components of each cluster


def halves(process, predicts="x0"):
    """A mixture of six components, its clusters as mixtures, and their shares."""
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 + torch.rand(6, generator=generator, dtype=F64)
    means = torch.randn(6, 3, generator=generator, dtype=F64)
    root = torch.randn(6, 3, 3, generator=generator, dtype=F64)
    covariances = root @ root.mT / 4 + 0.05 * torch.eye(3, dtype=F64)
    whole = GaussianMixture(weights, means, covariances, process, predicts)
    experts = [GaussianMixture(weights[p], means[p], covariances[p], process, predicts) for p in PARTS]
    return whole, experts, [float(weights[p].sum() / weights.sum()) for p in PARTS]


@pytest.mark.parametrize("predicts", ["x0", "eps"])
@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_exact_experts_and_posterior_are_the_global_model(process, predicts):
    whole, experts, shares = halves(process, predicts)
    mixed = ClusterExperts(experts, shares)
    x0 = whole.sample(64, seed=1)
    eps = torch.randn(64, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    for share in (0.05, 0.3, 0.7, 0.98):
        t = torch.tensor(process.t_min + share * (process.t_max - process.t_min), dtype=F64)
        x = process.alpha(t) * x0 + process.sigma(t) * eps
        ours, exact = mixed(x, t), whole(x, t)
        for kind in ("x0", "eps", "v", "velocity"):
            ours_k, exact_k = ours.to(kind), exact.to(kind)
            assert (ours_k - exact_k).abs().max() < 1e-10 * (1 + exact_k.abs().max()), (kind, share)
        density = torch.stack([e.log_likelihood(x, t) for e in experts], 1).exp() * torch.tensor(shares, dtype=F64)
        torch.testing.assert_close(mixed.weights(x, t), density / density.sum(1, keepdim=True))
    times = torch.linspace(0.2, 0.9, 64, dtype=F64) * process.t_max
    torch.testing.assert_close(mixed(x, times).x0, whole(x, times).x0, rtol=1e-9, atol=1e-9)


def test_experts_of_different_kinds_are_mixed_in_the_first_ones():
    whole, (a, b, c), shares = halves(VP())
    other = halves(VP(), "eps")[1]
    mixed = ClusterExperts([a, other[1], c], shares)
    x, t = torch.randn(8, 3, generator=torch.Generator().manual_seed(3), dtype=F64), torch.tensor(0.5, dtype=F64)
    answer = mixed(x, t)
    assert answer.kind == "x0"
    torch.testing.assert_close(answer.x0, whole(x, t).x0, rtol=1e-9, atol=1e-9)


class Rows(nn.Module):
    """A router that knows: expert k where the first number of the sample is k; 2 to 1 for the next one."""

    def forward(self, x, t, **condition):
        first = x.flatten(1)[:, 0].round().long() % 3
        hot = torch.nn.functional.one_hot(first, 3) + 0.5 * torch.nn.functional.one_hot((first + 1) % 3, 3)
        return 2 * torch.log(hot.double().clamp_min(1e-3))


class Counted(fs.Denoiser):
    """Answers x0 = scale + label, and remembers how many rows it saw."""

    def __init__(self, scale):
        super().__init__()
        self.process, self.shape, self.conditions, self.scale = VP(), (2,), {"label": Label(5)}, scale
        self.seen = []

    def forward(self, x, t, **condition):
        self.seen.append(len(x))
        from fewstep.core.prediction import Prediction

        value = torch.full_like(x, self.scale) + condition["label"].reshape(-1, 1)
        return Prediction(value + 0 * t.reshape(-1, *[1] * t.ndim), "x0", x, t, self.process)


@pytest.mark.parametrize("times", ["one for all", "one each"])
def test_top_keeps_the_likeliest_and_runs_nothing_else(times):
    experts = [Counted(s) for s in (10.0, 20.0, 30.0)]
    x = torch.tensor([[0.0, 5], [2, 5], [0, 5], [2, 5]], dtype=F64)
    t = torch.tensor([0.2, 0.3, 0.4, 0.5], dtype=F64) if times == "one each" else torch.tensor(0.3, dtype=F64)
    label = torch.tensor([0, 1, 2, 3])
    one = ClusterExperts(experts, Rows(), top=1)
    assert one(x, t, label=label).x0[:, 0].tolist() == [10, 31, 12, 33]
    assert [e.seen for e in experts] == [[2], [], [2]]  # the middle one is nobody's likeliest
    two = ClusterExperts(experts, Rows(), top=2)  # weights 1 and 1/4 of the logits' squares, to 4/5 and 1/5
    assert two.weights(x, t)[0].tolist() == pytest.approx([0.8, 0.2, 0.0])
    expected = [0.8 * 10 + 0.2 * 20, 0.8 * 30 + 0.2 * 10 + 1, 0.8 * 10 + 0.2 * 20 + 2, 0.8 * 30 + 0.2 * 10 + 3]
    assert two(x, t, label=label).x0[:, 0].tolist() == pytest.approx(expected)
    assert [e.seen[-1] for e in experts] == [4, 2, 2]
    whole = ClusterExperts(experts, Rows(), top=3)
    assert torch.equal(whole(x, t, label=label).x0, ClusterExperts(experts, Rows())(x, t, label=label).x0)


class Remembering(fs.Denoiser):
    """Answers x0 = how often this row was seen in the run, by a tensor in the run's memory."""

    carries = True

    def __init__(self):
        super().__init__()
        self.process, self.shape, self.rows = VP(), (2,), []

    def forward(self, x, t, *, memory=None, **condition):
        from fewstep.core.prediction import Prediction

        if memory is None:
            return Prediction(torch.zeros_like(x), "x0", x, t, self.process)
        memory.count(len(x))
        before = memory.get("seen")
        seen = torch.ones(len(x), 1, dtype=x.dtype) if before is None else before + 1
        memory.keep("seen", seen)
        self.rows.append(len(x))
        return Prediction(seen.expand_as(x), "x0", x, t, self.process)


@pytest.mark.parametrize("top", [None, 1])
def test_an_expert_that_remembers_has_a_memory_of_its_own_without_gaps(top):
    experts = [Remembering() for _ in range(3)]
    model = ClusterExperts(experts, Rows(), top)
    memory = Memory(3, (0.9, 0.5, 0.1), 0.0)
    x = torch.tensor([[0.0, 0], [1, 0], [2, 0]], dtype=F64)
    for number in range(1, 4):
        memory.advance()
        answer = ask(model, x + number, torch.tensor(0.5), memory, {})  # each row moves on to the next expert
        torch.testing.assert_close(answer.x0, torch.full_like(x, number))
    assert model.carries and {rows for e in experts for rows in e.rows} == {3}


def test_guided_cached_and_sampled(tmp_path):
    """Networks as experts and router, with labels: around and inside other wrappers, saved and loaded."""

    def network(seed, **options):
        torch.manual_seed(seed)
        made = UNet(**({"channels": 1, "size": 4, "width": (8,), "attention": (), "classes": 3} | options))
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
        return made

    with torch.random.fork_rng():
        experts = [NetworkDenoiser(network(k), EDM(), "x0", (1, 4, 4), {"label": Label(3)}, "edm") for k in range(2)]
        router = Router(network(7, out=2), EDM(), 2, 0.6)
    logits = router(torch.randn(5, 1, 4, 4), torch.tensor(1.5), label=torch.arange(5) % 3)
    assert logits.shape == (5, 2) and logits.std() > 0
    for top in (None, 1):
        model = ClusterExperts(experts, router, top, data="digits", data_std=0.6).eval()
        plain = fs.sample(model, 6, label=[0, 1, 2, 0, 1, 2], steps=3, solver="ddim")
        again = fs.load(fs.save(model, tmp_path / f"top-{top}"))
        assert torch.equal(fs.sample(again, 6, label=[0, 1, 2, 0, 1, 2], steps=3, solver="ddim"), plain)
        assert again.top == top and again.data == "digits" and again.data_std == 0.6
        guided = fs.guide(model, "cfg", scale=2.0)
        assert not torch.equal(fs.sample(guided, 6, label=1, steps=3), fs.sample(model, 6, label=1, steps=3))
        same = ClusterExperts([experts[0], copy.deepcopy(experts[0])], router, top).eval()
        torch.testing.assert_close(
            fs.sample(same, 6, label=1, steps=3), fs.sample(experts[0].eval(), 6, label=1, steps=3)
        )


def test_a_router_of_vectors():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP((3,), 16, 1, out=4)
    nn.init.normal_(network.last.weight)
    router = Router(network, VP(), 4)
    x = torch.randn(5, 3)
    found = router(x, torch.tensor(0.5))
    noise, norm = -router.process.log_snr(torch.tensor(0.5)) / 4, router.process.sigma(torch.tensor(0.5)) ** 2
    norm = (norm + 0.25 * router.process.alpha(torch.tensor(0.5)) ** 2).sqrt()
    raw = network((x / norm).float(), noise.float().expand(5)).view(5, 4, 3).mean(-1)
    torch.testing.assert_close(found, raw)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda e: ([], None), "at least one expert"),
        (lambda e: (e, None), "3 experts need a router"),
        (lambda e: (e, [0.5, 0.5]), "3 clusters have as many positive shares"),
        (lambda e: (e, [0.5, 0.6, -0.1]), "3 clusters have as many positive shares"),
        (lambda e: ([Counted(1.0)] * 2, [0.5, 0.5]), "know their log_likelihood"),
        (lambda e: (e, [1, 1, 1], 0), "a top of 1 to 3, got 0"),
        (lambda e: (e, [1, 1, 1], 4), "a top of 1 to 3, got 4"),
        (lambda e: ([*e[:2], halves(EDM())[1][0]], [1, 1, 1]), "the same process"),
        (lambda e: ([Counted(1.0), e[1]], Rows()), "the same"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusterExperts(*arguments(halves(VP())[1]))


def test_a_foreign_router_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="a router of class Rows cannot be saved"):
        fs.save(ClusterExperts(halves(VP())[1], Rows()), tmp_path / "m")
    exact = ClusterExperts(halves(VP())[1], [0.2, 0.3, 0.5], top=2)
    again = fs.load(fs.save(exact, tmp_path / "exact"))
    x, t = torch.randn(4, 3, dtype=F64), torch.tensor(0.4, dtype=F64)
    assert again.shares == (0.2, 0.3, 0.5) and torch.equal(again(x, t).x0, exact(x, t).x0)
