"""Stochastic consistency: consistency as its special case, the SDE at work, the discriminator; it learns."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import F64, MEAN, PROCESSES, VARIANCES, distance, drawn, exact, gaussian, plane, slopes, small, train

from fewstep.core.methods import made
from fewstep.distillation.consistency import Consistency
from fewstep.distillation.stochastic import Stochastic
from fewstep.distillation.teacher import step
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_without_noise_substeps_and_discriminator_it_is_consistency_bit_for_bit(process):
    one = Stochastic(small(process), eta=0.0, substeps=1, gan=0.0)
    other = Consistency(small(process), order=1)
    batches = [drawn(method) for method in (one, other)]
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in ("x0", "eps", "t", "s"))
    assert torch.equal(one.loss(batches[0]), other.loss(batches[1]))
    assert torch.equal(slopes(one, batches[0]), slopes(other, batches[1]))
    for method in (one, other):
        train(method, 3)
    for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_targets_side_is_reached_by_the_sde():
    process = VP()
    method = Stochastic(small(process), eta=0.7, substeps=4, gan=0.0)
    batch = drawn(method)
    assert batch["noises"].shape == (8, 4, 2)
    x = torch.randn(8, 2)
    expected = step(plane(process), x, batch["t"], batch["s"], {}, substeps=4, eta=0.7, noises=batch["noises"])
    assert torch.equal(method.reached(x, batch), expected)
    assert not torch.equal(expected, step(plane(process), x, batch["t"], batch["s"], {}, substeps=4))


def test_the_adversarial_loss_is_of_both_at_the_pairs_own_time():
    process = Flow()
    method = Stochastic(small(process), gan=0.3)
    batch = drawn(method)
    made_, goal = method.pair(batch)
    t = batch["t"].float()[:, None]
    seen = [(1 - t) * x0 + t * batch["noise"] for x0 in (batch["x0"], made_)]
    logits = [method.adversary.heads(x, batch["t"], {}) for x in seen]
    torch.testing.assert_close(
        method.loss(batch), method.compared(made_, goal, batch) + 0.3 * torch.nn.functional.softplus(-logits[1])
    )
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(method.critic_loss(batch), softplus(-logits[0]) + softplus(logits[1]))


def test_the_discriminator_moves_its_heads_alone_and_the_student_along_its_features():
    method = Stochastic(small(EDM(), classes=3))
    batch = drawn(method)
    heads = list(method.adversary.heads.parameters())
    assert method.players["discriminator"].parameters == heads
    found = torch.autograd.grad(method.critic_loss(batch).mean(), heads, allow_unused=True)
    assert all(slope is not None and float(slope.norm()) > 0 for slope in found)
    plain = Stochastic(small(EDM(), classes=3), gan=0.0)
    assert not torch.equal(slopes(method, batch), slopes(plain, batch))


def test_on_a_gaussian_the_exact_map_is_not_where_it_rests_with_noise():
    """The mean of an answer over the noise is not the answer of the mean: the student's target is another."""
    method = Stochastic(exact(EDM()), eta=1.0, substeps=1, gan=0.0, distance="squared", weight="one")
    plain = Consistency(exact(EDM()), order=1, distance="squared", weight="one")
    batch = drawn(method, 256)
    assert float(slopes(method, batch).norm()) > 2 * float(slopes(plain, batch).norm())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_on_a_gaussian_answers_come_to_rest_shrunk_by_the_noise(eta):
    """Of variance c: m + (c / (c + sigma^2))^((1 + eta) / 2) (x - m) is its own mean one step on, to second order."""
    teacher, x = gaussian(EDM(), "denoiser"), torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)

    def gap(h: float, power: float) -> float:
        t, s = (torch.full((5,), time, dtype=F64) for time in (2.0, 2.0 * math.exp(-h)))
        mean = step(teacher, x, t, s, {}, eta=eta, noises=torch.zeros(5, 1, 3, dtype=F64))
        answers = [
            MEAN + (VARIANCES / (VARIANCES + float(time[0]) ** 2)) ** power * (at - MEAN)
            for at, time in ((x, t), (mean, s))
        ]
        return float((answers[0] - answers[1]).detach().norm())

    power = (1 + eta) / 2
    assert gap(2e-3, power) < max(4.1 * gap(1e-3, power), 1e-14)  # at eta = 1 each step is exact
    assert gap(1e-3, power) < 1e-2 * gap(1e-3, power + 0.1)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"eta": -0.1}, "eta and gan must be at least 0, got -0.1 and 0.1"),
        ({"gan": -1.0}, "at least 0, got 0.5 and -1.0"),
        ({"features": ["blocks.0"]}, "unknown block 'blocks.0'"),
        ({"adversarial": "wgan"}, "unknown adversarial loss 'wgan'"),
    ],
)
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        made("distiller", "scott", 1, **options)(small(EDM()))


@pytest.mark.slow
def test_it_learns_in_four_steps():
    """One step of it is a mean over the noise (see the test above), so it is judged where it is to be used."""
    method = Stochastic(small(EDM(), iterations=600, lr=4e-3, ema=0.97), levels=8)
    before = distance(method, steps=4)
    train(method, 600, 128)
    assert distance(method, steps=4) < before / 3
