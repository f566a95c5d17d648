"""noise-free: the mixture without a noise level, against Bayes' rule and automatic differentiation."""

from __future__ import annotations

import pytest
import torch

from fewstep.denoisers.noise_free import NoiseFree
from fewstep.processes.vp import VP

F64 = torch.float64
LEVELS = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=F64)


def test_its_score_is_that_of_the_law_over_all_levels(make_mixture):
    mixture = make_mixture(VP(), (3,))
    model = NoiseFree(mixture, LEVELS)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    density = torch.stack([mixture.log_likelihood(x, t) for t in LEVELS], 1).logsumexp(1)
    (score,) = torch.autograd.grad(density.sum(), x)
    answer = model(x.detach(), torch.tensor(0.2, dtype=F64))
    torch.testing.assert_close(answer.value, score)
    assert answer.kind == "score" and torch.equal(model(x.detach(), torch.tensor(0.8, dtype=F64)).value, answer.value)


def test_in_another_kind_it_is_the_mean_of_those_answers(make_mixture):
    mixture = make_mixture(VP())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    shares = NoiseFree(mixture, LEVELS).posterior(x)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, dtype=F64))
    wanted = sum(shares[:, [k]] * mixture(x, t).v for k, t in enumerate(LEVELS))
    torch.testing.assert_close(NoiseFree(mixture, LEVELS, "v")(x, LEVELS[0]).value, wanted)
    log_snr = NoiseFree(mixture, LEVELS).log_snr(x)
    torch.testing.assert_close(log_snr, shares @ VP().log_snr(LEVELS))


def test_the_mean_noise_level_of_noised_data_is_that_of_the_levels(make_mixture):
    mixture, n = make_mixture(VP(), (6,)), 500
    model, generator = NoiseFree(mixture, LEVELS), torch.Generator().manual_seed(2)
    t = LEVELS.repeat_interleave(n)
    eps = torch.randn(len(t), 6, generator=generator, dtype=F64)
    x = VP().alpha(t)[:, None] * model.sample(len(t), 3) + VP().sigma(t)[:, None] * eps
    assert float(model.log_snr(x).mean() - VP().log_snr(LEVELS).mean()) == pytest.approx(0, abs=0.02)


def test_bad_input(make_mixture):
    mixture = make_mixture(VP())
    with pytest.raises(ValueError, match="did you mean 'score'"):
        NoiseFree(mixture, LEVELS, "scor")
    for levels in ([0.5], [0.5, 1.5], [0.5, 0.0]):
        with pytest.raises(ValueError, match="levels must be at least 2 times from"):
            NoiseFree(mixture, levels)
