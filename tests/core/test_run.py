"""The executor: dtypes, callbacks, wrappers of every habit, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.core.program import Rows, program
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64
NOISE = Noise(1).normal(0, (3, 2, 5), "cpu", F64)
SOLVERS = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-3", "heun", "euler", "vab-3", "ab-3", "dpm-solver-3", "plms", "ddpm"]


class Says(Denoiser):
    """The same denoiser, answering in another kind; `kind` may depend on the call."""

    def __init__(self, base, kind):
        super().__init__()
        self.base, self.kind, self.calls = base, kind, 0
        self.process, self.shape = base.process, base.shape

    def forward(self, x, t, **condition):
        self.calls += 1
        kind = self.kind(self.calls) if callable(self.kind) else self.kind
        return Prediction(self.base(x, t).to(kind), kind, x, t, self.process)


class Changed(Denoiser):
    """A denoiser whose prediction's value goes through a function of (call, value)."""

    def __init__(self, base, change):
        super().__init__()
        self.base, self.change, self.calls = base, change, 0
        self.process, self.shape = base.process, base.shape

    def forward(self, x, t, **condition):
        self.calls += 1
        p = self.base(x, t)
        return Prediction(self.change(self.calls, p.value), p.kind, x, t, self.process)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(t_max=0.99)], ids=lambda p: p.name)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_kind_gives_the_same_samples_through_the_same_plan(name, process, make_mixture):
    made = plan(process, name, 6, "karras", end="min")
    base = make_mixture(process, (2, 5))
    expected = made(base, NOISE, dtype=F64)
    for kind in ("eps", "v", "velocity", "score", "flow"):
        torch.testing.assert_close(made(Says(base, kind), NOISE, dtype=F64), expected, rtol=1e-7, atol=1e-8, msg=kind)


@pytest.mark.parametrize("kind", ["v", "velocity", "flow", "x0"])
@pytest.mark.parametrize("process", [Flow(), Cosine(t_max=1.0)], ids=lambda p: p.name)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_kind_that_can_starts_from_pure_noise(name, process, kind, make_mixture):
    made = plan(process, name, 5)
    base = make_mixture(process, (2, 5))
    x = made(Says(base, kind), NOISE, dtype=F64)
    torch.testing.assert_close(x, made(base, NOISE, dtype=F64), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_eps_says_nothing_at_pure_noise(kind, make_mixture):
    made = plan(Flow(), "ddim", 4)
    model = Says(make_mixture(Flow(), (2, 5), predicts="eps"), kind)
    with pytest.raises(ValueError, match=f"a prediction of '{kind}' says nothing about 'x0' at t = 1, where alpha = 0"):
        made(model, NOISE)


def test_a_wrapper_that_changes_its_kind_in_the_middle(make_mixture):
    process = VP()
    base = make_mixture(process, (2, 5))
    made = plan(process, "dpmpp-3m", 8)
    kinds = ["v", "x0", "eps", "score"]
    x = made(Says(base, lambda call: kinds[call % 4]), NOISE, dtype=F64)
    torch.testing.assert_close(x, made(base, NOISE, dtype=F64), rtol=1e-8, atol=1e-9)


def test_a_network_that_reuses_its_output_buffer(make_mixture):
    base = make_mixture(VP(), (2, 5))
    buffer = torch.empty(3, 2, 5, dtype=F64)
    for name in SOLVERS:
        made = plan(VP(), name, 6)
        x = made(Changed(base, lambda _, value: buffer.copy_(value)), NOISE, dtype=F64)
        assert torch.equal(x, made(base, NOISE, dtype=F64)), name


def test_a_network_that_returns_its_input():
    """x0 = x: the value aliases the state that the next step overwrites."""

    class Identity(Denoiser):
        process, shape = VP(), (2, 5)

        def forward(self, x, t):
            return Prediction(x, "x0", x, t, self.process)

    made = plan(VP(), "ddim", timesteps=[0.9, 0.6, 0.3])
    x = NOISE * VP().sigma(0.9)
    for t, s in ((0.9, 0.6), (0.6, 0.3)):
        ratio = VP().sigma(s) / VP().sigma(t)
        x = x * ratio + x * (VP().alpha(s) - VP().alpha(t) * ratio)
    torch.testing.assert_close(made(Identity(), NOISE, dtype=F64), x)


def test_the_state_is_float32_by_default_and_near_float64(make_mixture):
    for name in SOLVERS:
        made = plan(VP(), name, 10)
        model = make_mixture(VP(), (2, 5))
        low, high = made(model, NOISE), made(model, NOISE, dtype=F64)
        assert low.dtype == torch.float32 and high.dtype == F64
        assert float((low - high).abs().max()) < 2e-5, name


def test_a_bfloat16_network_under_a_float32_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(5, 5)

        def forward(self, x, noise):
            assert x.dtype == self.layer.weight.dtype and noise.dtype == torch.float32
            return self.layer(x)

    made = plan(VP(), "dpmpp-2m", 6)
    full, half = (NetworkDenoiser(Net().to(d), VP(), "v", (2, 5)) for d in (torch.float32, torch.bfloat16))
    a, b = made(full, NOISE), made(half, NOISE)
    assert b.dtype == torch.float32
    assert 0 < float((a - b).abs().max()) < 0.1


def test_a_float64_network_under_a_float32_state(make_mixture):
    model = make_mixture(VP(), (2, 5))
    wide = Changed(model, lambda _, value: value.double())
    made = plan(VP(), "unipc-2", 6)
    torch.testing.assert_close(made(wide, NOISE), made(model, NOISE))


def test_the_callback_sees_every_evaluation(make_mixture):
    made, seen = plan(VP(), "heun", 4), []
    model = make_mixture(VP(), (2, 5))
    result = made.run(
        model, NOISE, trajectory=True, callback=lambda i, t, x, p: seen.append((i, t, x.clone(), p.x0.clone()))
    )
    assert [(i, t) for i, t, *_ in seen] == [(k + 1, e.t) for k, e in enumerate(made.evaluations)]
    assert len(result.trajectory) == made.nfe + 1
    for (_, t, x, x0), kept in zip(seen, result.trajectory, strict=False):
        assert torch.equal(x, kept)
        torch.testing.assert_close(x0, model(x, torch.tensor(t)).x0)
    assert torch.equal(result.trajectory[-1], result.samples)
    assert torch.equal(result.trajectory[0], NOISE.float() * made.start[1])
    assert torch.equal(result.samples, made(model, NOISE))


def test_planned_and_actual_evaluations(make_mixture):
    model = Changed(make_mixture(VP(), (2, 5)), lambda _, value: value)
    result = plan(VP(), "unipc-4", 9).run(model, NOISE)
    assert result.planned_nfe == result.nfe == model.calls
    assert result.seconds > 0 and result.trajectory == ()


def test_progress_changes_nothing(make_mixture, capsys):
    made, model = plan(VP(), "ddim", 3), make_mixture(VP(), (2, 5))
    assert torch.equal(made(model, NOISE, progress=True), made(model, NOISE))


def test_no_gradient_in_the_loop(make_mixture):
    seen = []

    def look(_, value):
        seen.append(torch.is_grad_enabled())
        return value

    noise = NOISE.clone().requires_grad_(True)
    x = plan(VP(), "ddim", 3)(Changed(make_mixture(VP(), (2, 5)), look), noise)
    assert seen == [False] * 3 and not x.requires_grad and torch.is_grad_enabled()


def test_the_noise_is_left_alone(make_mixture):
    noise = NOISE.clone()
    plan(EDM(), "euler", 3)(make_mixture(EDM(), (2, 5)), noise, dtype=F64)
    assert torch.equal(noise, NOISE)


def test_a_start_in_the_middle_is_noised_init(make_mixture):
    process = VP()
    model = make_mixture(process, (2, 5))
    init = model.sample(3, seed=2)
    made = plan(process, "ddim", timesteps=[0.4, 0.1])
    first = made.run(model, NOISE, init=init, dtype=F64, trajectory=True).trajectory[0]
    torch.testing.assert_close(first, process.alpha(0.4) * init + process.sigma(0.4) * NOISE)
    with pytest.raises(ValueError, match=r"init has shape \(2, 2, 5\), the noise \(3, 2, 5\)"):
        made(model, NOISE, init=init[:2])


@pytest.mark.parametrize(
    "noise,options,message",
    [
        (torch.zeros(3, 2, 4), {}, r"noise of shape \(3, 2, 4\) does not fit the model: it takes \(B, 2, 5\)"),
        (torch.zeros(2, 5), {}, r"noise of shape \(2, 5\) does not fit"),
        (torch.zeros(5), {}, r"noise must have a batch dimension, \(B, \*shape\), got shape \(5,\)"),
        (torch.zeros(3, 2, 5, dtype=torch.long), {}, r"noise must be a float tensor \(B, \*shape\), got torch.int64"),
        ([[0.0]], {}, "noise must be a float tensor .* got list"),
        (torch.zeros(3, 2, 5), {"dtype": torch.float16}, "the sampling state is float32 or float64, got torch.float16"),
        (torch.zeros(3, 2, 5), {"label": 3}, "this model is unconditional: it takes no 'label'"),
    ],
)
def test_bad_input(noise, options, message, make_mixture):
    with pytest.raises(ValueError, match=message):
        plan(VP(), "ddim", 3)(make_mixture(VP(), (2, 5)), noise, **options)


def test_a_plan_of_another_process(make_mixture):
    model = make_mixture(VP(beta_max=12.0), (2, 5))
    with pytest.raises(ValueError, match=r"made for the process 'edm', the model has 'vp' .* fs.plan\(model.process"):
        plan(EDM(), "ddim", 3)(model, NOISE)
    with pytest.raises(ValueError, match="or other parameters of it"):
        plan(VP(), "ddim", 3)(model, NOISE)


@pytest.mark.parametrize("call", [1, 3, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_is_named(call, bad, make_mixture):
    made = plan(VP(), "dpmpp-2m", 4)
    t = f"{made.evaluations[call - 1].t:.6g}"

    def spoil(calls, value):
        value = value.clone()
        if (calls - 1) % 4 + 1 == call:  # the second run, which looks for the culprit, meets it again
            value[1, 1, 3] = bad
        return value

    model = Changed(make_mixture(VP(), (2, 5)), spoil)
    with pytest.raises(
        ValueError, match=f"the network returned values that are not finite at evaluation {call}, t = {t}"
    ):
        made(model, NOISE)


def test_noise_that_is_not_finite_is_blamed_on_the_noise(make_mixture):
    noise = NOISE.clone()
    noise[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the network received values that are not finite at evaluation 1"):
        plan(VP(), "ddim", 3)(make_mixture(VP(), (2, 5)), noise)


def test_a_network_of_the_wrong_shape_is_named(make_mixture):
    made = plan(VP(), "ddim", 4)
    model = Changed(make_mixture(VP(), (2, 5)), lambda call, value: value[:, :1] if call == 3 else value)
    t = f"{made.evaluations[2].t:.6g}"
    message = rf"the network returned shape \(3, 1, 5\) for an input of shape \(3, 2, 5\) at evaluation 3, t = {t}"
    with pytest.raises(ValueError, match=message):
        made(model, NOISE)


def test_a_driver_may_reorder_the_samples_between_two_sends():
    """Every sample's row, in states and memory, goes where it is sent: as if it had been there from the start."""
    made = plan(VP(), "dpmpp-3m", steps=5)
    start = Noise(2).normal(0, (3, 4), dtype=torch.float64)
    index = torch.tensor([2, 0, 0])

    def run(x: torch.Tensor, at: int) -> torch.Tensor:
        rows = Rows(made.table, x)
        steps, asked, number = program(made.table, x, Noise(0), rows), None, 0
        try:
            asked = next(steps)
            while True:
                value = torch.tanh(2 * asked[0])
                if number == at:
                    rows.reorder(index)
                    value = value[index]
                number += 1
                asked = steps.send((value, "x0"))
        except StopIteration as stop:
            return stop.value

    plain = run(start, -1)
    for at in range(5):
        torch.testing.assert_close(run(start, at), plain[index], rtol=1e-12, atol=1e-12)
