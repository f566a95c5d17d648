"""The contract of every method of guidance that wraps a model; a card of the room enters by itself.

Its rows are those of the contract of wrappers. Facts: `linear`, the rule is the same in every kind of prediction;
`runs`, it is at work in a run alone.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from contracts.test_wrappers import CAPTIONED, SHAPE, WRAPPERS, Model, asked, made
from torch import Tensor

import fewstep as fs
from fewstep.core.memory import Memory, ask
from fewstep.core.prediction import Prediction

METHODS = {name: card for name, card in WRAPPERS.items() if card.kind == "guidance"}
F64 = torch.float64


class Spoken(Model):
    """The model, its answers in a kind of choice."""

    def __init__(self, kind: str = "v", captions: bool = False) -> None:
        super().__init__(captions=captions)
        self.kind = kind

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Any:
        answer = super().forward(x, t, **condition)
        return answer if self.kind == answer.kind else Prediction(answer.to(self.kind), self.kind, x, t, self.process)


@functools.cache
def spoken(captions: bool) -> Spoken:
    return Spoken(captions=captions).eval()


@pytest.fixture
def model(name: str) -> Spoken:
    return spoken(name in CAPTIONED)


def states(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", [name for name, card in METHODS.items() if card.facts.get("linear")])
def test_a_linear_rule_is_the_same_in_every_kind(name, model):
    x, t = states(3), torch.tensor(0.4)
    with torch.no_grad():
        wanted = (wrapped := made(name, model))(x, t, **asked(wrapped, x)).x0
        for kind in ("x0", "eps"):
            other = made(name, Spoken(kind, name in CAPTIONED).eval())
            torch.testing.assert_close(other(x, t, **asked(other, x)).x0, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_each_sample_is_answered_alone(name, model):
    wrapped, x, t = made(name, model), states(3, F64), torch.tensor([0.2, 0.4, 0.8], dtype=F64)
    with torch.no_grad():
        whole = wrapped(x, t, **asked(wrapped, x)).value
        for i in range(3):
            named = {key: value[i : i + 1] for key, value in asked(wrapped, x).items()}
            one = wrapped(x[i : i + 1], t[i : i + 1], **named).value
            torch.testing.assert_close(one, whole[i : i + 1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(wrapped(x[i : i + 1], t[i], **named).value, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["v", "eps"])
@pytest.mark.parametrize("name", METHODS)
def test_it_is_finite_where_alpha_or_sigma_is_zero(name, kind):
    wrapped, x = made(name, Spoken(kind, name in CAPTIONED).eval()), states(2)
    for t in (wrapped.process.t_zero, wrapped.process.t_max):
        assert bool(torch.isfinite(wrapped(x, torch.tensor(float(t)), **asked(wrapped, x)).value).all())


@pytest.mark.parametrize("name", METHODS)
def test_gradients_flow_into_the_state(name, model):
    wrapped, x = made(name, model), states(2).requires_grad_()
    wrapped(x, torch.tensor(0.4), **asked(wrapped, x)).value.square().sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all()) and float(x.grad.abs().max()) > 0


@pytest.mark.parametrize("name", [name for name, card in METHODS.items() if not card.facts.get("runs")])
def test_the_first_evaluation_of_a_run_is_the_answer_without_one(name, model):
    wrapped, x, t = made(name, model), states(3), torch.tensor(0.4)
    memory = Memory(3, (0.4, 0.2), 0.0)
    memory.advance()
    with torch.no_grad():
        inside = ask(wrapped, x, t, memory, asked(wrapped, x)).value
        torch.testing.assert_close(inside, wrapped(x, t, **asked(wrapped, x)).value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_runs_that_share_calls_are_those_alone(name, model):
    wrapped, plans = made(name, model), [fs.plan(model.process, "ddim", steps) for steps in (3, 2)]
    named = {"label": 1} if "label" in wrapped.conditions else {}
    requests = [(plans[0], states(2), named), (plans[1], states(3)[1:], named)]
    for x, (own, noise, given) in zip(fs.run_mixed(requests, wrapped), requests, strict=True):
        torch.testing.assert_close(x, own(wrapped, noise, **given), rtol=1e-4, atol=1e-4)
