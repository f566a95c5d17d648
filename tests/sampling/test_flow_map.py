"""Jumps of flow maps: the solver "flow-map", and its times of arrival in every executor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.conditions.time import Time
from fewstep.core.noise import Noise
from fewstep.core.ops import Evaluate
from fewstep.core.plan import Plan
from fewstep.core.sampler import begin_run
from fewstep.core.unrolled import unrolled
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names
from fewstep.sampling.checkpointed import checkpointed
from fewstep.sampling.compiled import Compiled, compile, step
from fewstep.sampling.mixed import run_mixed
from fewstep.sampling.parallel import run_parallel
from fewstep.sampling.skipping import skip
from fewstep.training.trajectories import visits

F64 = torch.float64
MEAN, COVARIANCE = torch.tensor([0.5, -1.0, 0.2], dtype=F64), torch.tensor([0.3, 1.5, 0.04], dtype=F64)
NOISE = Noise(1).normal(0, (5, 3), "cpu", F64)
CLOSE = {"rtol": 0, "atol": 1e-12}


def gaussian(process, kind="map"):
    return GaussianMap(MEAN, COVARIANCE, process, kind)


class Aimed(nn.Module):
    """A network that looks at where it goes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, noise, target=None):
        target = noise if target is None else target
        return torch.tanh(self.layer(x)) * (1 + noise)[:, None] + target[:, None]


def network(process):
    torch.manual_seed(0)
    return NetworkDenoiser(Aimed().double(), process, "x0", (3,), {"to": Time()}, value_range=None)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)
def test_every_grid_of_an_exact_map_ends_where_the_flow_does(process):
    model = gaussian(process)
    start = NOISE * process.sigma(process.t_max)
    exact = model.flow(start, torch.tensor(process.t_max, dtype=F64), torch.tensor(process.t_zero, dtype=F64))
    for steps in (1, 2, 5):
        made = plan(process, "flow-map", steps)
        assert [op.given for op in made.evaluations] == [(("to", t),) for t in made.times[1:]]
        assert made.nfe == steps and not made.stochastic
        torch.testing.assert_close(made(model, NOISE, dtype=F64), exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)
def test_gamma_is_the_papers_algorithm_3(process):
    """Written out: to sqrt(1 - gamma^2) of the next ratio, then noise of gamma of it; the last step without."""
    model, gamma = network(process), 0.6
    times = [process.t_max, *(process.time(v) for v in (-0.7, 0.9)), process.t_zero]
    x, source = NOISE * process.sigma(times[0]), Noise(4)
    for k, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        last = k == 2
        to = s if last else process.time(process.log_snr(s) - math.log(0.8))
        a, b, c, d = process.alpha(t), process.sigma(t), process.alpha(to), process.sigma(to)
        there = torch.full((5,), to, dtype=F64)
        x0 = model(x, torch.tensor(t, dtype=F64), to=there).x0
        x = d / b * x + (c - a * d / b) * x0
        if not last:
            assert d / c == pytest.approx(0.8 * process.sigma(s) / process.alpha(s))
            x = process.alpha(s) / c * x + gamma * process.sigma(s) * source.normal(k + 1, (5, 3), "cpu", F64)
    made = plan(process, "flow-map", timesteps=times, gamma=gamma)
    torch.testing.assert_close(made(model, NOISE, seed=4, dtype=F64), x, rtol=1e-10, atol=1e-10)


def test_gamma_1_is_multistep_consistency():
    process = VP()
    ours, theirs = (
        plan(process, "flow-map", 4, "karras", gamma=1.0),
        plan(process, "multistep-consistency", 4, "karras"),
    )
    assert [op.given for op in ours.evaluations] == [(("to", process.t_zero),)] * 4
    bare = [replace(op, given=()) if isinstance(op, Evaluate) else op for op in ours.ops]
    assert tuple(bare) == theirs.ops and ours.start == theirs.start
    map_, jump = (gaussian(process, kind) for kind in ("map", "jump"))
    assert torch.equal(ours(map_, NOISE, seed=3, dtype=F64), theirs(jump, NOISE, seed=3, dtype=F64))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_every_executor_passes_the_target_on(gamma):
    process = VP()
    model, made = network(process), plan(process, "flow-map", 4, "karras", gamma=gamma)
    wanted = made(model, NOISE, seed=2, dtype=F64)
    assert Plan.from_json(made.to_json()) == made and ", to=" in str(made)
    torch.testing.assert_close(run_parallel(made, model, NOISE, 3, 0.0, seed=2, dtype=F64).samples, wanted, **CLOSE)
    torch.testing.assert_close(checkpointed(made, model, NOISE, seed=2), wanted, **CLOSE)
    torch.testing.assert_close(Compiled(made, model, step)(NOISE, seed=2, dtype=F64), wanted, **CLOSE)
    torch.testing.assert_close(skip(made, 0.0)(model, NOISE, seed=2, dtype=F64), wanted, **CLOSE)
    table, draws = made.table, [draw for stage in made.table.stages for draw, _ in stage.draws]
    x, named = begin_run(made, model, NOISE, None, F64, {})
    noises = [Noise(2).normal(draw, (5, 3), "cpu", F64) for draw in draws]
    found = unrolled(
        table.structure, model, x, *table.numbers("x0", x.device, F64), noises, named, table.given(x.device, F64)
    )
    torch.testing.assert_close(found, wanted, **CLOSE)
    if gamma == 0:  # beside plans that do not jump, which is the diffusion model
        plain = plan(process, "dpmpp-2m", 3)
        mixed = run_mixed([(made, NOISE), (plain, NOISE[:2]), (made, NOISE[:3])], model, dtype=F64)
        torch.testing.assert_close(mixed[0], wanted, **CLOSE)
        torch.testing.assert_close(mixed[1], plain(model, NOISE[:2], dtype=F64), **CLOSE)
        torch.testing.assert_close(mixed[2], wanted[:3], **CLOSE)
        answers = visits(model, made, NOISE, {})
        assert [float(visit.condition["to"][0]) for visit in answers] == pytest.approx(list(made.times[1:]))


def test_other_times_compile_nothing_anew():
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    process, counter = VP(), CompileCounter()
    model = network(process).float()
    compiled, noise = None, NOISE.float()
    for steps, rule in ((3, "karras"), (3, "uniform"), (5, "log-snr")):
        made = plan(process, "flow-map", steps, rule)
        compiled = compile(made, model, backend=counter) if compiled is None else compiled.use(made)
        torch.testing.assert_close(compiled(noise), made(model, noise), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_a_model_that_is_not_told_refuses_in_one_line():
    process = VP()
    model, made = gaussian(process, "denoiser"), plan(process, "flow-map", 2)
    runs = (
        lambda: made(model, NOISE, dtype=F64),
        lambda: run_parallel(made, model, NOISE, dtype=F64),
        lambda: run_mixed([(made, NOISE)], model, dtype=F64),
        lambda: checkpointed(made, model, NOISE),
        lambda: Compiled(made, model, step)(NOISE, dtype=F64),
        lambda: skip(made)(model, NOISE, dtype=F64),
        lambda: visits(model, made, NOISE, {}),
    )
    for run in runs:
        with pytest.raises(ValueError, match="^the plan gives the network 'to' at its evaluations, but this model"):
            run()
    with pytest.raises(ValueError, match="gives the network 'to' .* a diffusers pipeline passes nothing on"):
        plan(Flow(), "flow-map", 2).as_diffusers_scheduler()


def test_bad_gamma_and_what_leaves_it_out():
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"gamma must be between 0 and 1, got {gamma}"):
            plan(VP(), "flow-map", 2, gamma=gamma)
    assert "flow-map" not in solver_names()
