"""adadiff: rewards by hand, a policy gradient that finds the best plan of each condition, and samples of its plans."""

from __future__ import annotations

import json

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.adadiff import Policy, reinforce, rewards
from fewstep.searching.job import Job

F64 = torch.float64


class Classes(Denoiser):
    """A mixture for each label."""

    def __init__(self, mixtures: list[GaussianMixture]):
        super().__init__()
        self.mixtures = torch.nn.ModuleList(mixtures)
        self.process, self.shape = mixtures[0].process, (2,)
        self.conditions = {"label": Label(len(mixtures))}

    def forward(self, x, t, label=None):
        value = torch.zeros_like(x)
        for k, mixture in enumerate(self.mixtures):
            value = torch.where((label == k)[:, None], mixture(x, t).x0, value)
        return Prediction(value, "x0", x, t, self.process)


@pytest.fixture(scope="module")
def classes(make_mixture) -> Classes:
    """Labels 0 and 2 are points, which one evaluation meets; label 1 has five components."""
    process = VP()
    points = [
        GaussianMixture(torch.ones(1), torch.tensor([[a, 0.4]]), torch.tensor([1e-8]), process) for a in (0.5, -0.7)
    ]
    return Classes([points[0], make_mixture(process), points[1]])


def test_rewards_are_quality_and_saving_or_the_penalty():
    errors = torch.tensor([[0.02, 0.08], [0.3, 0.01], [4.0, 0.05]], dtype=F64)
    lost = torch.tensor([[False, False], [False, True], [False, False]])
    found = rewards(errors, lost, [2, 8], tolerance=0.1, saving=0.5, penalty=1.0)
    expected = torch.tensor([[0.98 + 0.5 * 0.75, 0.92], [-1.3, -1.01], [-2.0, 0.95]], dtype=F64)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow  # as the claims say
def test_the_policy_gradient_finds_the_best_plan_of_each_condition():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 5
    means = torch.rand(5, 3, generator=generator, dtype=F64)
    table = means[labels] + 0.1 * torch.randn(60, 3, generator=generator, dtype=F64)
    features = torch.nn.functional.one_hot(labels, 5).double()
    first, bias, second, offset = reinforce(features, table, seed=1, hidden=16, updates=600)
    chosen = (torch.tanh(torch.eye(5, dtype=F64) @ first.T + bias) @ second.T + offset).argmax(1)
    best = torch.stack([table[labels == k].mean(0) for k in range(5)]).argmax(1)
    assert torch.equal(chosen, best)


def test_easy_conditions_get_few_steps_and_hard_ones_many(searched, classes):
    job, finished = searched("adadiff", classes, 12, counts=[1, 3, 12], noises=48)
    policy = job.result
    assert finished and isinstance(policy, Policy)
    easy, hard, other = policy.counts()
    assert easy == other == 1 and hard == 12
    assert policy.counts([1, 2]) == [12, 1] and policy.counts(0) == [1]
    assert job.best.nfe == 1  # two of three conditions
    # The score is the held-out mean reward: 1 and 11/12 of the steps for the points, the long plan's for the rest.
    label = job.held_out.condition["label"]
    kept = torch.tensor(job.state["held_out"][0], dtype=F64)[label == 1]  # from the most steps down
    long = rewards(kept[:, :1], kept[:, 1:] > 0, [12], 0.1, 1.0, 1.0)
    easy_ones = float((label != 1).double().sum())
    assert job.score == pytest.approx(-(easy_ones * (1 + 11 / 12) + float(long.sum())) / len(label), abs=1e-3)
    assert job.measure == "less the mean reward"


def test_where_no_count_will_do_the_best_is_asked_for(searched, classes):
    job, _ = searched("adadiff", classes, 8, counts=[2, 8], noises=48, tolerance=1e-6)
    assert job.result.counts(1) == [8]


def toy(classes, gains: tuple[float, ...] = (1.0, -1.0, 1.0)) -> Policy:
    """Labels with a negative gain get the longer of two plans."""
    plans = [plan(classes.process, "dpmpp-2m", n, "karras") for n in (2, 5)]
    weights = [torch.eye(3), torch.zeros(3), torch.tensor([gains, [-g for g in gains]]), torch.zeros(2)]
    return Policy(plans, classes.conditions, weights)


def test_each_sample_is_its_own_plans(classes):
    policy = toy(classes)
    label = torch.tensor([0, 1, 2, 1, 0, 1, 1])
    for batch in (None, 2):
        x = policy(classes, 7, label=label, seed=4, first=3, dtype=F64, max_batch=batch)
        noise = Noise(4, 3).normal(0, (7, 2), "cpu", F64)
        for i in range(7):
            made = policy.plans[int(label[i] == 1)]
            alone = made(classes, noise[i : i + 1], dtype=F64, label=label[i : i + 1])
            torch.testing.assert_close(x[i : i + 1], alone, rtol=1e-10, atol=1e-12)
    one = policy(classes, 3, label=1, seed=4, first=3, dtype=F64)
    assert one.shape == (3, 2)


def test_a_policy_is_a_file(classes, tmp_path):
    policy = toy(classes, (0.3, -0.1, 1 / 3))
    policy.save(tmp_path / "policy.json")
    again = Policy.load(tmp_path / "policy.json")
    assert all(torch.equal(a, b) for a, b in zip(again.weights, policy.weights, strict=True))
    assert again.plans == policy.plans and again.conditions == policy.conditions and again.counts() == policy.counts()
    data = json.loads((tmp_path / "policy.json").read_text())
    for key, value in (("format", "other"), ("weights", data["weights"][:3]), ("plans", []), ("weights", "text")):
        (tmp_path / "bad.json").write_text(json.dumps(data | {key: value}))
        with pytest.raises(ValueError, match="bad.json is no fewstep policy"):
            Policy.load(tmp_path / "bad.json")


def test_unknown_conditions_are_refused(classes):
    policy = toy(classes)
    for condition, words in (
        ({"label": 3}, "out of range"),
        ({"label": [0, 5]}, "out of range"),
        ({"colour": 1, "label": 0}, "unknown condition"),
        ({"label": None}, "none of it"),
        ({}, "none of it"),
        ({"label": 0.5}, "whole numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            policy(classes, 2, **condition)
    with pytest.raises(ValueError, match="made for the process"):
        other = Classes([GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, Flow()) for _ in range(3)])
        policy(other, 2, label=0)
    with pytest.raises(ValueError, match="draws noise"):
        Policy(
            [plan(VP(), "ddpm", 3)],
            classes.conditions,
            [torch.eye(3), torch.zeros(3), torch.ones(1, 3), torch.zeros(1)],
        )


@pytest.mark.slow
def test_a_search_taken_up_again_ends_as_if_it_had_not_been_stopped(resumed, classes, tmp_path):
    # The references take 2560 evaluations, the plans 64 for each of theirs: 512, 384, 256, 128.
    whole = resumed("adadiff", classes, 8, tmp_path, (3100, 2700))
    again = Job(classes, 8, method="adadiff", noises=32, reference_nfe=40, folder=tmp_path)
    assert [len(again.state[side]) for side in ("train", "held_out")] == [4, 4]
    assert sorted(made.nfe for made in whole.result.plans) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"counts": [3]}, "two counts"),
        ({"counts": [3, 12]}, "between 1 and the search's nfe, 8"),
        ({"solver": "ddpm"}, "deterministic"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
    ],
)
def test_bad_options_are_refused_at_once(searched, classes, options, words):
    with pytest.raises(ValueError, match=words):
        searched("adadiff", classes, 8, **options)


def test_an_unconditional_model_is_refused(searched, make_mixture):
    with pytest.raises(ValueError, match="this model is unconditional"):
        searched("adadiff", make_mixture(VP()), 8)
