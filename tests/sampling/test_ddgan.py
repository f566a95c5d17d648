"""Posterior steps with a latent: the solver "ddgan" against Bayes' rule, and its draws in every executor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.conditions.latent import Latent
from fewstep.core.noise import Noise
from fewstep.core.ops import Draw, Evaluate
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.sampler import begin_run
from fewstep.core.unrolled import unrolled
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.program import export_program, load_program
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names
from fewstep.sampling.checkpointed import checkpointed
from fewstep.sampling.compiled import Compiled, compile, step
from fewstep.sampling.ddim import posterior
from fewstep.sampling.mixed import run_mixed
from fewstep.sampling.parallel import run_parallel
from fewstep.sampling.skipping import skip
from fewstep.searching.problem import Problem
from fewstep.searching.shared import run_shared
from fewstep.training.trajectories import visits

F64 = torch.float64
NOISE = Noise(1).normal(0, (5, 3), "cpu", F64)
CLOSE = {"rtol": 0, "atol": 1e-12}
every = pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)


class Drawing(nn.Module):
    """A network that looks at its latent."""

    def __init__(self):
        super().__init__()
        self.layer, self.latent = nn.Linear(3, 3), nn.Linear(2, 3)

    def forward(self, x, noise, latent=None):
        latent = x.new_zeros(len(x), 2) if latent is None else latent
        return torch.tanh(self.layer(x)) + self.latent(latent.to(x.dtype)) / (1 + noise)[:, None]


def network(process):
    torch.manual_seed(0)
    return NetworkDenoiser(Drawing().double(), process, "x0", (3,), {"latent": Latent(2)}, value_range=None)


@every
def test_its_step_is_bayes_rule(process):
    """`q(x_s | x_t, x0)` from the two Gaussians `q(x_t | x_s)` and `q(x_s | x0)`, by their precisions."""
    for t, s in ((0.8, 0.3), (0.5, 0.1)):
        t, s = (process.time(math.log((1 - u) / u)) for u in (t, s))
        alpha_t, sigma_t, alpha_s, sigma_s = process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)
        ratio = alpha_t / alpha_s
        step2 = sigma_t**2 - (ratio * sigma_s) ** 2
        precision = ratio**2 / step2 + 1 / sigma_s**2
        std, of_x, of_x0 = posterior(process, t, s)
        assert std == pytest.approx(precision**-0.5, rel=1e-12)
        assert of_x == pytest.approx(ratio / step2 / precision, rel=1e-12)
        assert of_x0 == pytest.approx(alpha_s / sigma_s**2 / precision, rel=1e-12)
    first = process.t_max if process.alpha(process.t_max) == 0 else None
    if first is not None:  # pure noise says nothing of x0
        s = process.time(0.0)
        assert posterior(process, first, s) == pytest.approx((process.sigma(s), 0.0, process.alpha(s)))
    assert posterior(process, process.t_max, process.t_zero)[::2] == (0.0, process.alpha(process.t_zero))


@every
def test_it_is_ddpm_with_a_draw_for_the_network(process):
    ours, theirs = (plan(process, name, 4, "karras") for name in ("ddgan", "ddpm"))
    assert [type(op) for op in ours.ops if not isinstance(op, Draw)] == [
        type(op) for op in theirs.ops if not isinstance(op, Draw)
    ]
    draws = {op.slot: op.draw for op in ours.ops if isinstance(op, Draw)}
    assert [draws[op.latent] for op in ours.evaluations] == [1, 3, 5, 7]
    assert ours.nfe == 4 and ours.stochastic and ", latent=z1" in str(ours)
    assert Plan.from_json(ours.to_json()) == ours

    class Point(NetworkDenoiser):
        """The exact x0 of a point mass."""

        def forward(self, x, t, latent=None):
            return Prediction(x * 0 + torch.tensor([0.3, -1.0, 2.0], dtype=F64), "x0", x, t, process)

    point = Point(nn.Identity(), process, "x0", (3,), {"latent": Latent(2)}, value_range=None)
    ends = ours(point, NOISE, seed=3, dtype=F64)
    torch.testing.assert_close(ends, torch.tensor([[0.3, -1.0, 2.0]], dtype=F64).expand(5, 3), rtol=0, atol=1e-12)


def written_out(made, model, seed):
    """The run by hand, with draws of the sample's own numbered stream."""
    source, x, k = Noise(seed), NOISE * made.start[1], 0

    def draw():
        nonlocal k
        k += 1
        return source.normal(k, (5, 3), "cpu", F64)

    for t, s in zip(made.times, made.times[1:], strict=False):
        z = draw()[:, :2]
        x0 = model(x, torch.tensor(t, dtype=F64), latent=z).x0
        std, of_x, of_x0 = posterior(model.process, t, s)
        x = of_x * x + of_x0 * x0 + (std * draw() if std else 0)
    return x


@every
def test_every_executor_passes_the_draw_on(process, tmp_path):
    model, made = network(process), plan(process, "ddgan", 4, "karras")
    wanted = made(model, NOISE, seed=2, dtype=F64)
    torch.testing.assert_close(wanted, written_out(made, model, 2), **CLOSE)
    alone = torch.cat([made(model, NOISE[k : k + 1], seed=2, first=k, dtype=F64) for k in range(5)])
    torch.testing.assert_close(alone, wanted, **CLOSE)
    torch.testing.assert_close(run_parallel(made, model, NOISE, 3, 0.0, seed=2, dtype=F64).samples, wanted, **CLOSE)
    torch.testing.assert_close(checkpointed(made, model, NOISE, seed=2), wanted, **CLOSE)
    torch.testing.assert_close(checkpointed(made, model, NOISE, seed=2, last=1), wanted, **CLOSE)
    torch.testing.assert_close(Compiled(made, model, step)(NOISE, seed=2, dtype=F64), wanted, **CLOSE)
    table, count = made.table, sum(isinstance(op, Draw) for op in made.ops)
    x, named = begin_run(made, model, NOISE, None, F64, {})
    noises = [Noise(2).normal(draw + 1, (5, 3), "cpu", F64) for draw in range(count)]
    found = unrolled(table.structure, model, x, *table.numbers("x0", x.device, F64), noises, named)
    torch.testing.assert_close(found, wanted, **CLOSE)
    answers = visits(model, made, NOISE, {})
    assert all(visit.condition["latent"].shape == (5, 3) for visit in answers)
    again = [model(visit.x, visit.t, **visit.condition).value for visit in answers]  # nothing was overwritten
    assert all(torch.equal(a, visit.answer.value) for a, visit in zip(again, answers, strict=True))


def test_beside_plans_that_draw_nothing_for_it():
    process = VP()
    model, made, plain = network(process), plan(process, "ddgan", 3), plan(process, "dpmpp-2m", 3)
    wanted, other = made(model, NOISE, dtype=F64), plain(model, NOISE, dtype=F64)
    mixed = run_mixed([(made, NOISE), (plain, NOISE[:2]), (made, NOISE[:3])], model, dtype=F64)
    torch.testing.assert_close(mixed[0], wanted, **CLOSE)
    torch.testing.assert_close(mixed[1], other[:2], **CLOSE)
    torch.testing.assert_close(mixed[2], wanted[:3], **CLOSE)
    problem = Problem(NOISE, torch.zeros_like(NOISE), {}, 0, 0)
    shared = run_shared([made, plain], model, problem)
    torch.testing.assert_close(shared[0].samples, wanted, **CLOSE)
    torch.testing.assert_close(shared[1].samples, other, **CLOSE)
    told = torch.tensor([[1.0, -2.0]], dtype=F64).expand(5, 2)  # a caller's own, where the plan has none
    assert not torch.allclose(plain(model, NOISE, latent=told, dtype=F64), other)
    assert torch.equal(plain(model, NOISE, latent=torch.zeros(2), dtype=F64), other)


@pytest.mark.slow
def test_it_is_exported_with_its_draws(tmp_path):
    model, made = network(VP()).float(), plan(VP(), "ddgan", 2)
    path = export_program(made, model, tmp_path / "ddgan.pt2")
    torch.testing.assert_close(load_program(path)(NOISE.float(), seed=4), made(model, NOISE.float(), seed=4))


def test_a_model_without_a_latent_refuses_in_one_line(make_mixture):
    process = VP()
    model, made = make_mixture(process, (3,)), plan(process, "ddgan", 2)
    runs = (
        lambda: made(model, NOISE, dtype=F64),
        lambda: run_parallel(made, model, NOISE, dtype=F64),
        lambda: run_mixed([(made, NOISE)], model, dtype=F64),
        lambda: checkpointed(made, model, NOISE),
        lambda: Compiled(made, model, step)(NOISE, dtype=F64),
        lambda: visits(model, made, NOISE, {}),
    )
    for run in runs:
        with pytest.raises(ValueError, match="^the plan gives the network 'latent' at its evaluations, but this model"):
            run()
    with pytest.raises(ValueError, match="gives the network 'latent' .* a diffusers pipeline passes nothing on"):
        plan(Flow(), "ddgan", 2).as_diffusers_scheduler()
    with pytest.raises(ValueError, match="'ddgan' draws a latent for the network, which 'skipping 0.01' does not pass"):
        skip(made, 0.01)
    assert "ddgan" not in solver_names()


def test_plans_that_make_no_sense():
    made = plan(VP(), "ddgan", 2)
    data = made.to_json()
    first = made.evaluations[0]
    ops = tuple(replace(op, latent=0) if op is first else op for op in made.ops)
    with pytest.raises(ValueError, match="slot 0 is a latent of the network, but it is no draw"):
        Plan.from_json(replace(made, ops=ops).to_json())
    assert '"fewstep-plan-2"' in data and isinstance(first, Evaluate)
    with pytest.raises(ValueError, match="a latent of 4 numbers is drawn with a state of at least as many, got one of"):
        Latent(4).of(NOISE)


@pytest.mark.slow
def test_other_times_compile_nothing_anew():
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter, model, compiled = CompileCounter(), network(VP()).float(), None
    for steps, rule in ((3, "karras"), (4, "uniform")):
        made = plan(VP(), "ddgan", steps, rule)
        compiled = compile(made, model, backend=counter) if compiled is None else compiled.use(made)
        torch.testing.assert_close(compiled(NOISE.float()), made(model, NOISE.float()), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
