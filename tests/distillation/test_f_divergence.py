"""Seven f-divergences: their gradients by quadrature, their weights by hand."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import (
    F64,
    affine,
    built,
    flat,
    gradient,
    hermite,
    jumper,
    law,
    learned,
    moved,
    resumes,
    setting,
    train,
    trapezoid,
)

from fewstep.core.prediction import expand
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation import distribution_matching
from fewstep.distillation.f_divergence import F, FDistill
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

PROCESS = EDM()
DIVERGENCES = {  # f of `E_q f(p / q)`, in log r
    "rkl": lambda r: -r,
    "fkl": lambda r: r.exp() * r,
    "js": lambda r: r.exp() * r - (r.exp() + 1) * torch.log((r.exp() + 1) / 2),
    "hellinger": lambda r: 4 * (1 - (r / 2).exp()),
    "jeffreys": lambda r: (r.exp() - 1) * r,
    "softened-rkl": lambda r: (r.exp() + 1) * torch.log((r.exp() + 1) / (2 * r.exp())),
    "neyman": lambda r: (1 - r.exp()) ** 2 / (2 * r.exp()),
}


def bimodal():
    means, variances = torch.tensor([[-0.8], [0.9]], dtype=F64), torch.tensor([0.25, 0.15], dtype=F64)
    return GaussianMixture(torch.tensor([0.7, 0.3]), means, variances, PROCESS)


def exact(student, teacher, name, d=1):
    """The method with the exact fake score and the exact ratio of densities."""
    heads = NetworkDenoiser(MLP((d,), width=4, depth=1), PROCESS, "x0", (d,), precondition="edm")
    method = FDistill(setting(student, teacher, heads), name, limit=1e30, gan=0)
    q = method.fake = law(student)
    method.discriminator = lambda x, t, condition: teacher.log_likelihood(x, t) - q.log_likelihood(x, t)
    return method


@pytest.mark.parametrize("name", F)
def test_the_gradient_is_that_of_the_divergence(name, monkeypatch):
    monkeypatch.setattr(distribution_matching, "normalised", lambda fake, real, x: fake - real)
    student = jumper(PROCESS, torch.tensor([0.2], dtype=F64), torch.tensor([[0.5]], dtype=F64))
    teacher, sigma = bimodal(), 0.6
    method = exact(student, teacher, name)
    monkeypatch.setattr(method, "balanced", lambda h, share: h)
    drawn, weights = trapezoid(PROCESS, sigma)
    found = gradient(lambda batch: method.loss(method.samples(batch), batch), student, drawn, weights) / sigma**2
    x = torch.linspace(-12, 12, 6001, dtype=F64)
    t = torch.tensor(sigma, dtype=F64)
    log_p = teacher.log_likelihood(x[:, None], t)
    mean, root = affine(student)
    log_q = torch.distributions.Normal(mean, (root[0] ** 2 + sigma**2).sqrt()).log_prob(x)
    divergence = (log_q.exp() * DIVERGENCES[name](log_p - log_q)).sum() * (x[1] - x[0])
    answer = flat(torch.autograd.grad(divergence, list(student.parameters())))
    torch.testing.assert_close(found, answer, rtol=1e-9, atol=1e-11)
    assert answer.abs().min() > 1e-2


@pytest.mark.parametrize("name", F)
def test_it_is_at_rest_at_the_teachers_law_and_not_beside(name):
    drawn, weights = hermite(2, PROCESS)
    size = []
    for by in (0.0, 0.1):
        student = moved(jumper(PROCESS), by)
        method = exact(student, law(jumper(PROCESS)), name, d=2)
        size.append(float(gradient(method._loss, student, drawn, weights).norm()))
    assert size[0] < 1e-10
    assert size[1] > 1e-3


def test_reverse_kl_is_dmd2():
    drawn = (one := built("f-distill", divergence="rkl")).draw(8, torch.Generator().manual_seed(0))
    other = built("dmd2")
    x = one.samples(drawn).detach()
    assert torch.equal(one.loss(x, drawn), other.loss(x, drawn))


def test_the_weights_by_hand():
    r = torch.tensor([0.25, 1.0, 4.0], dtype=F64)
    table = {
        "rkl": [1, 1, 1], "fkl": [0.25, 1, 4], "js": [0.2, 0.5, 0.8], "hellinger": [0.5, 1, 2],
        "jeffreys": [1.25, 2, 5], "softened-rkl": [0.8, 0.5, 0.2], "neyman": [4, 1, 0.25],
    }  # fmt: skip
    assert table.keys() == F.keys()
    for name, values in table.items():
        torch.testing.assert_close(F[name](r), torch.tensor(values, dtype=F64))


def test_weights_are_divided_by_the_mean_of_their_levels_and_of_the_batch():
    method = built("f-distill", bins=2, decay=0.5)
    share = torch.tensor([0.1, 0.2, 0.7, 0.98], dtype=F64)
    found = method.balanced(torch.tensor([1.0, 3.0, 10.0, 10.0], dtype=F64), share)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5, 1.0, 1.0], dtype=F64))
    # Half of the sums stay: (4 / 2 + 8) / (2 / 2 + 1) = 5 in the first bin, (20 / 2 + 5 * 3) / (2 / 2 + 3) = 25 / 4.
    found = method.balanced(
        torch.tensor([8.0, 5.0, 5.0, 5.0], dtype=F64), torch.tensor([0.1, 0.6, 0.7, 0.8], dtype=F64)
    )
    h = torch.tensor([8 / 5, 4 / 5, 4 / 5, 4 / 5], dtype=F64)
    torch.testing.assert_close(found, h / h.mean())
    torch.testing.assert_close(method.state()["sums"], torch.tensor([[10.0, 25.0], [2.0, 4.0]], dtype=F64))


def test_the_ratio_is_the_discriminators_within_limits():
    method = built("f-distill", divergence="fkl", limit=4.0, bins=1)
    logits = torch.tensor([-9.0, -0.5, 0.0, 0.5, 9.0])
    method.discriminator = lambda x, t, condition: logits
    drawn = method.draw(5, torch.Generator().manual_seed(0))
    x = method.samples(drawn).detach()
    h = torch.tensor([0.25, 0.6065306597, 1.0, 1.6487212707, 4.0])
    plain = built("dmd2", gan=0).direction(x, drawn)
    torch.testing.assert_close(method.direction(x, drawn), expand(h / h.mean(), x) * plain)


@pytest.mark.parametrize("options", [{}, {"gan": 0.0, "divergence": "fkl", "ratio": 2}])
@pytest.mark.slow  # the contract has one of each method
def test_it_resumes_bit_for_bit(options):
    assert resumes("f-distill", **options)


def test_it_opens_no_data_where_the_teacher_makes_the_real_samples():
    method = built("f-distill", real="teacher", pairs=9, plan=plan(PROCESS, "ddim", 2))
    opened: list[bool] = []
    method.setting.data, method.setting.known = None, lambda: opened.append(True)
    train(method, 5)
    assert not opened


def test_what_it_refuses():
    for options, said in [
        ({"divergence": "kl"}, "unknown divergence 'kl': did you mean"),
        ({"limit": 1.0}, "limit must lie above 1"),
        ({"bins": 0}, "bins be at least 1"),
        ({"decay": 1.0}, "decay in"),
    ]:
        with pytest.raises(ValueError, match=said):
            built("f-distill", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fkl", "js"])
def test_it_learns(name):
    before, after = learned("f-distill", 500, divergence=name)
    assert after < before / 3
