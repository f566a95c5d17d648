"""Adaptive projected guidance, "apg"."""

from __future__ import annotations

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.guidance.cfg import cfg
from fewstep.guidance.projected import apg
from fewstep.processes.vp import VP

F64 = torch.float64
GIVEN, EMPTY = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


class Answers(Denoiser):
    """Two answers, whatever the state."""

    def __init__(self) -> None:
        super().__init__()
        self.process, self.shape, self.conditions = VP(), (2, 3), {"label": Label(1)}

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Prediction:
        whole = torch.stack([GIVEN, EMPTY])[label, torch.arange(len(x)) % 4]
        return Prediction(whole, "x0", x, t, self.process)


def answer(**options) -> torch.Tensor:
    t, label = torch.tensor(0.5, dtype=F64), torch.zeros(4, dtype=torch.long)
    return apg(Answers(), 4.0, **options)(torch.zeros_like(GIVEN), t, label=label).value


def test_the_step_is_orthogonal_to_the_answer():
    step = answer() - GIVEN
    assert float((step * GIVEN).flatten(1).sum(1).abs().max()) < 1e-12
    difference = GIVEN - EMPTY
    along = (difference * GIVEN).flatten(1).sum(1) / GIVEN.square().flatten(1).sum(1)
    torch.testing.assert_close(step, 3.0 * (difference - along[:, None, None] * GIVEN))
    half = answer(eta=0.5) - GIVEN
    torch.testing.assert_close((half * GIVEN).flatten(1).sum(1), 1.5 * along * GIVEN.square().flatten(1).sum(1))


def test_whole_and_unlimited_it_is_cfg():
    torch.testing.assert_close(answer(eta=1.0), torch.lerp(EMPTY, GIVEN, 4.0))


def test_the_limit_is_a_share_of_the_answer():
    step = answer(eta=1.0, limit=0.3) - GIVEN
    norms = step.flatten(1).norm(dim=1) / GIVEN.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((4,), 0.9, dtype=F64))
    torch.testing.assert_close(answer(eta=1.0, limit=1e3), answer(eta=1.0))


def test_momentum_runs_through_a_run_of_each_sample_alone():
    model, x = Answers(), torch.randn(4, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    guided, plan, seen = apg(model, 4.0, eta=1.0, momentum=-0.5), fs.plan(model.process, "ddim", 4), []
    plan(guided, x, label=0, dtype=F64, callback=lambda n, t, x, p: seen.append(p.value.clone()))
    running = torch.zeros_like(GIVEN)
    for value in seen:
        running = GIVEN - EMPTY - 0.5 * running
        torch.testing.assert_close(value, GIVEN + 3.0 * running)
    requests = [(plan, x, {"label": 0}), (fs.plan(model.process, "ddim", 2), x[:4], {"label": 0})]
    for made, (own, noise, named) in zip(fs.run_mixed(requests, guided, dtype=F64), requests, strict=True):
        assert torch.equal(made, own(guided, noise, dtype=F64, **named))
    torch.testing.assert_close(answer(eta=1.0, momentum=-0.5), answer(eta=1.0))  # none outside a run


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_it_is_finite_at_both_ends_and_continuous(kind):
    """At pure noise the step has its limit, which a time nearby comes to."""
    model = Scaled(VP(), kind)
    x, label = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(3)), torch.zeros(4).long()
    for t in (model.process.t_zero, model.process.t_max):
        at = lambda time: apg(model, 4.0, limit=0.3)(x, torch.tensor(time, dtype=F64), label=label).value  # noqa: E731
        near = t + (1e-7 if t == model.process.t_zero else -1e-7)
        assert bool(torch.isfinite(at(t)).all())
        torch.testing.assert_close(at(t), at(near), rtol=1e-3, atol=1e-3)


def test_faulty_options():
    model = Answers()
    for options, message in (
        ({"eta": -0.1}, "eta must be from 0 to 1, got -0.1"),
        ({"momentum": -2.0}, "momentum must be from -1 to 1, got -2.0"),
        ({"limit": 0.0}, "limit must be above 0 and finite, or None, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            apg(model, 2.0, **options)
    assert torch.equal(apg(model, 1.0)(GIVEN, torch.tensor(0.5), label=torch.zeros(4).long()).value, GIVEN)
    assert cfg(model, 2.0).plan is None
