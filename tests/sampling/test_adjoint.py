"""adjoint, checkpointed and reversible against plain autograd through the same steps."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from sampled import sampled
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.core.unrolled import unrolled
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.adjoint import adjoint_flow, sample_with_gradient
from fewstep.sampling.angle import Angle, increment, tableau
from fewstep.sampling.build import plan, solver_names
from fewstep.sampling.checkpointed import checkpointed
from fewstep.sampling.reversible import _step, forward, reversible_flow

F64 = torch.float64


class Net(Denoiser):
    """A small network of the state, the angle and a float condition of width 3."""

    conditions = {"prompt": None}  # type: ignore[dict-item]

    def __init__(self, process, d: int = 5, seed: int = 0):
        super().__init__()
        self.process, self.shape = process, (d,)
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(d + 4, 16), nn.Linear(16, d)
        self.double()

    def check_condition(self, condition, batch, device):
        return {"prompt": condition["prompt"]}

    def forward(self, x, t, prompt):
        angle = torch.atan2(self.process.sigma(t), self.process.alpha(t)).to(x.dtype).expand(len(x), 1)
        norm = (self.process.sigma(t) ** 2 + self.process.alpha(t) ** 2).sqrt()
        inner = torch.tanh(self.first(torch.cat((x / norm, angle, prompt), 1)))
        return Prediction(self.second(inner), "v", x, t, self.process)


def pieces(process):
    """A network, noise and a condition, both of which want gradients."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(7, 5, generator=generator, dtype=F64).requires_grad_(True)
    prompt = torch.randn(7, 3, generator=generator, dtype=F64).requires_grad_(True)
    return Net(process), noise, prompt


def loss(x):
    return (x**3 + torch.arange(x.numel(), dtype=F64).reshape(x.shape) * x / 10).sum()


def gradients(x, model, noise, prompt):
    return torch.autograd.grad(loss(x), (noise, prompt, *model.parameters()))


def together(parts):
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("name", [*solver_names()[::3], "unipc-3", "dpmpp-2s-sde"])
def test_checkpointed_gives_the_plans_samples_and_gradients(name):
    model, noise, prompt = pieces(VP())
    made = plan(model.process, name, 6)
    table = made.table
    times, weights, conversions = table.numbers("v", noise.device, F64)
    draws = sum(len(stage.draws) for stage in table.stages)
    noises = [Noise(9, 2).normal(k + 1, (7, 5), "cpu", F64) for k in range(draws)]
    start = noise * made.start[1]
    plain = unrolled(table.structure, model, start, times, weights, conversions, noises, {"prompt": prompt})
    wanted = gradients(plain, model, noise, prompt)
    for segment in (None, 1, 4, 100):
        x = checkpointed(made, model, noise, segment=segment, seed=9, first=2, prompt=prompt)
        torch.testing.assert_close(x, plain, rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(gradients(x, model, noise, prompt), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@sampled("solver, process", ["euler", "midpoint", "rk4"], [VP(), EDM(), Flow()])
def test_reversible_gradients_are_those_of_its_steps(solver, process):
    model, noise, prompt = pieces(process)
    frame, rule = Angle(process), tableau(solver)
    grid = [frame.angle(process.t_max) + (0.05 - frame.angle(process.t_max)) * k / 12 for k in range(13)]

    def slope(y, angle):
        return frame.slope(model, y, angle, {"prompt": prompt})

    tensors = (prompt, *model.parameters())
    ours, theirs = reversible_flow(slope, noise, grid, rule, tensors), forward(_step(slope, rule), noise, grid)[0]
    torch.testing.assert_close(ours, theirs)
    expected = gradients(theirs, model, noise, prompt)
    for a, b in zip(gradients(ours, model, noise, prompt), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}


@sampled("solver, way", list(ORDERS), ["adjoint", "reversible"])
def test_gradients_converge_at_the_order_of_the_solver(way, solver):
    flow, order = {"adjoint": adjoint_flow, "reversible": reversible_flow}[way], ORDERS[solver]
    model, noise, prompt = pieces(Flow())
    frame = Angle(Flow())

    def slope(y, angle):
        return frame.slope(model, y, angle, {"prompt": prompt})

    def grid(steps):
        return [math.pi / 2 + (0.05 - math.pi / 2) * k / steps for k in range(steps + 1)]

    y = noise
    for a, b in zip(grid(96), grid(96)[1:], strict=False):  # plain autograd through a fine solution
        y = y + increment(tableau("rk4"), lambda s, state: (slope(state[0], s),), a, b, (y,))[0]
    wanted = together(gradients(y, model, noise, prompt))
    errors = []
    for steps in {1: (64, 128), 2: (16, 32), 4: (6, 12)}[order]:
        x = flow(slope, noise, grid(steps), tableau(solver), (prompt, *model.parameters()))
        errors.append(float((together(gradients(x, model, noise, prompt)) - wanted).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize(
    "process",
    [*(pytest.param(process, marks=pytest.mark.slow) for process in (VP(), EDM())), Flow()],
    ids=lambda p: p.name,
)
def test_the_three_ways_agree_to_the_end_of_the_clock(process):
    """On fine steps all of them follow one ODE, and end with the same prediction."""
    model, noise, prompt = pieces(process)
    times = [frame_time(process, u) for u in torch.linspace(0, 1, 61).tolist()] + [process.t_zero]
    found = {}
    for method in ("checkpointed", "adjoint", "reversible"):
        solver = "dpmpp-3m" if method == "checkpointed" else "midpoint"
        x = sample_with_gradient(model, noise, 61, method, solver=solver, timesteps=times, prompt=prompt)
        found[method] = (x.detach(), together(gradients(x, model, noise, prompt)))
    x, gradient = found["checkpointed"]
    for method in ("adjoint", "reversible"):
        assert float((found[method][0] - x).norm() / x.norm()) < 5e-3
        assert float(torch.cosine_similarity(found[method][1], gradient, 0)) > 0.999
    close = found["adjoint"][1] - found["reversible"][1]
    assert float(close.norm() / gradient.norm()) < 5e-3


def frame_time(process, u: float) -> float:
    frame = Angle(process)
    return frame.time(frame.angle(process.t_max) * (1 - u) + 0.02 * u) if u > 0 else process.t_max


@contextmanager
def counted():
    """The elements of the tensors that autograd keeps between the forward and the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def saved(method: str, steps: int) -> int:
    model, noise, prompt = pieces(VP())
    with counted() as kept:
        if method == "plain":
            table = plan(model.process, "dpmpp-2m", steps).table
            times, weights, conversions = table.numbers("v", noise.device, F64)
            x = unrolled(table.structure, model, noise, times, weights, conversions, [], {"prompt": prompt})
        else:
            x = sample_with_gradient(model, noise, steps, method, prompt=prompt)
    total = sum(kept.values())
    loss(x).backward()
    assert noise.grad is not None and prompt.grad is not None
    return total


def test_memory_is_flat_in_the_steps():
    for method in ("adjoint", "reversible"):
        assert saved(method, 4) == saved(method, 36)
    plain = [saved("plain", steps) for steps in (4, 36)]
    assert plain[1] > 7 * plain[0]
    kept = [saved("checkpointed", steps) for steps in (4, 36)]
    assert kept[1] < 4 * kept[0] and kept[1] < plain[1] / 3  # the square root of nine is three


def test_only_what_asks_gets_a_gradient():
    model, noise, prompt = pieces(VP())
    model.requires_grad_(False)
    for method in ("checkpointed", "adjoint", "reversible"):
        x = sample_with_gradient(model, noise, 3, method, prompt=prompt.detach())
        (gradient,) = torch.autograd.grad(x.sum(), noise)
        assert bool(torch.isfinite(gradient).all())
        assert not sample_with_gradient(model, noise.detach(), 3, method, prompt=prompt.detach()).requires_grad
    trained = pieces(VP())[0]
    x = sample_with_gradient(trained, noise.detach(), 3, "adjoint", prompt=prompt.detach())
    x.sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


def test_one_step_and_the_smallest_noise():
    model, noise, prompt = pieces(Flow())
    for method in ("checkpointed", "adjoint", "reversible"):
        x = sample_with_gradient(model, noise, 1, method, prompt=prompt)
        t = torch.tensor(1.0, dtype=F64)
        torch.testing.assert_close(x, model(noise, t, prompt).x0, rtol=1e-6, atol=1e-9)
        assert sample_with_gradient(model, noise, 2, method, end="min", prompt=prompt).shape == (7, 5)


def test_weights_changed_before_the_way_back_are_noticed():
    model, noise, prompt = pieces(VP())
    x = sample_with_gradient(model, noise, 3, "adjoint", end="min", prompt=prompt)
    with torch.no_grad():
        model.first.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"method": "adjoin"}, "unknown way to the gradient 'adjoin': did you mean 'adjoint'"),
        ({"method": "adjoint", "solver": "dpmpp-2m"}, "unknown Runge-Kutta method 'dpmpp-2m'"),
        ({"method": "checkpointed", "solver": "rk5"}, "unknown solver 'rk5'"),
        ({"method": "reversible", "plan": plan(VP(), "ddim", 3)}, "it takes solver and steps, no plan"),
        ({"plan": plan(VP(), "ddim", 3), "solver": "ddim"}, "give either plan or solver"),
        ({"plan": plan(EDM(), "ddim", 3)}, "the plan was made for the process 'edm'"),
    ],
)
def test_bad_input(options, message):
    model, noise, prompt = pieces(VP())
    with pytest.raises(ValueError, match=message):
        sample_with_gradient(model, noise, 4, **options, prompt=prompt)


def test_bad_shapes():
    model, noise, prompt = pieces(VP())
    with pytest.raises(ValueError, match=r"samples of shape \(4,\), the model takes \(5,\)"):
        sample_with_gradient(model, noise[:, :4], 4, "adjoint", prompt=prompt)
    with pytest.raises(ValueError, match="a segment has at least 1 stage, got 0"):
        checkpointed(plan(VP(), "ddim", 3), model, noise, segment=0, prompt=prompt)


def test_the_frame_is_the_models_own_through_guidance():
    import fewstep as fs
    from fewstep.sampling.angle import frame_of

    model = fs.load("digits")
    assert model.data_std != 1.0
    assert frame_of(fs.guide(model, "cfg", scale=2.0), None).data_std == model.data_std
    assert frame_of(fs.guide(model, "cfg", scale=2.0), 0.3).data_std == 0.3
