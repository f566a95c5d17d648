"""Classifier guidance on a mixture with labels, where the conditional score is known, and by a classifier of levels."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.training.noise_classifier import NoiseClassifier, exact_levels, noise_times

F64 = torch.float64
WEIGHTS, MEANS = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 1.0]])
VARIANCES = torch.tensor([0.1, 0.3, 0.2])


def whole(process):
    return GaussianMixture(WEIGHTS, MEANS, VARIANCES, process)


def part(process, label):
    return GaussianMixture(torch.ones(1), MEANS[label, None], VARIANCES[label, None], process)


def posterior(process):
    parts = [part(process, k) for k in range(3)]

    def log_probability(x, t, label):
        joint = torch.stack([own.log_likelihood(x, t) for own in parts], 1) + WEIGHTS.double().log()
        return joint.log_softmax(1).gather(1, label[:, None])[:, 0]

    return log_probability


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_the_score_and_the_classifiers_gradient_are_the_conditional_score(process):
    guided = fs.guide(whole(process), "classifier", log_probability=posterior(process), classes=3)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    named = guided.check_condition({"label": torch.tensor([0, 2, 1, 3])}, 4, x.device)
    for t in (torch.tensor(0.4, dtype=F64), torch.tensor([0.05, 0.5, 0.9, 0.6], dtype=F64)):
        with torch.no_grad():
            answer = guided(x, t, **named)
        times = t.expand(4)
        for row, law in enumerate((part(process, 0), part(process, 2), part(process, 1), whole(process))):
            expected = law(x[row, None], times[row, None]).score
            torch.testing.assert_close(answer.score[row, None], expected, rtol=0, atol=1e-9)
    for t in (0.0, 1.0):
        found = guided(x, torch.tensor(t, dtype=F64), **named).value
        near = part(process, 0)(x[:1], torch.tensor(t, dtype=F64)).x0
        torch.testing.assert_close(found[:1], near, rtol=0, atol=3e-3)


def test_samples_follow_the_label_and_the_scale_counts_it():
    guided = fs.guide(whole(VP()), "classifier", log_probability=posterior(VP()), classes=3)
    plan, noise = fs.plan(VP(), "dpmpp-2m", steps=10), fs.Noise(seed=1).normal(0, (5, 2), dtype=F64)
    torch.testing.assert_close(
        plan(guided, noise, dtype=F64, label=1), plan(part(VP(), 1), noise, dtype=F64), rtol=0, atol=1e-9
    )
    x, t = noise, torch.tensor(0.5, dtype=F64)
    label = torch.ones(5, dtype=torch.long)
    change = [
        fs.guide(whole(VP()), "classifier", log_probability=posterior(VP()), classes=3, scale=s)(x, t, label=label).x0
        - whole(VP())(x, t).x0
        for s in (1.0, 2.5)
    ]
    torch.testing.assert_close(change[1], 2.5 * change[0])


def test_a_classifier_of_noise_levels_leads_to_where_a_sample_looks_as_noisy_as_it_is():
    process, model = VP(), whole(VP())
    times = noise_times(process, 9, 0.05, 20.0)

    class Exact:
        def __init__(self):
            self.process, self.times, self.logits = process, times, exact_levels(model, times)

        def __call__(self, y):
            return self.logits(y)

    guided = fs.guide(model, "classifier", log_probability=Exact())
    x, k = 3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(2), dtype=F64), 4
    t = torch.tensor(times[k], dtype=F64)
    place = x.clone().requires_grad_()
    value = exact_levels(model, times)(place / process.alpha(t)).log_softmax(1)[:, k]
    expected = model(x, t).score + torch.autograd.grad(value.sum(), place)[0]
    torch.testing.assert_close(guided(x, t).score, expected, rtol=0, atol=1e-10)
    for end in (0.0, 1.0):  # beyond the levels
        assert bool(guided(x, torch.tensor(end, dtype=F64)).value.isfinite().all())
    learned = NoiseClassifier(process, times, (2,))
    assert guided(x.float(), t).value.dtype == torch.float32
    assert bool(fs.guide(model, "classifier", log_probability=learned)(x, t.expand(4)).value.isfinite().all())


def test_messages():
    with pytest.raises(ValueError, match="the scale of the gradient must be at least 0 and finite, got -0.5"):
        fs.guide(whole(VP()), "classifier", log_probability=posterior(VP()), scale=-0.5)
    wrong = fs.guide(whole(VP()), "classifier", log_probability=lambda x, t: x)
    with pytest.raises(ValueError, match="the log-probability must return one number for each sample"):
        wrong(torch.zeros(2, 2), torch.tensor(0.5))
    guided = fs.guide(whole(VP()), "classifier", log_probability=posterior(VP()), classes=3)
    with pytest.raises(ValueError, match="label 4 is out of range"):
        guided.check_condition({"label": 4}, 1, torch.device("cpu"))
