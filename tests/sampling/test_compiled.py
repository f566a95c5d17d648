"""compile: one graph for all schedules of a solver, the eager samples."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.compiled import compile


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3", "ab-4", "heun", "dpmpp-2s-sde"])
def test_one_graph_for_every_schedule_and_step_count(solver, make_mixture):
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = make_mixture(VP(), (2, 3))
    noise = Noise(7).normal(0, (4, 2, 3), "cpu", torch.float64)
    compiled = None
    for steps, rule in ((6, "karras"), (9, "log-snr"), (6, "uniform")):
        made = plan(VP(), solver, steps, rule)
        compiled = compile(made, model, backend=counter) if compiled is None else compiled.use(made)
        x = compiled(noise, seed=7, dtype=torch.float64)
        torch.testing.assert_close(x, made(model, noise, seed=7, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert counter.frame_count == 1


def test_a_start_at_pure_noise_and_in_the_middle(make_mixture):
    model = make_mixture(Flow(), (3,))
    noise, clean = Noise(7).normal(0, (4, 3)), torch.ones(4, 3)
    whole, half = plan(Flow(), "vab-3", 8), plan(Flow(), "vab-3", 8, strength=0.5)
    compiled = compile(whole, model, backend="eager")
    torch.testing.assert_close(compiled(noise), whole(model, noise), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        compiled.use(half)(noise, init=clean), half(model, noise, init=clean), rtol=1e-4, atol=1e-5
    )


def test_a_plan_for_another_process_is_refused(make_mixture):
    with pytest.raises(ValueError, match="made for another process"):
        compile(plan(Flow(), "ddim", 3), make_mixture(VP()))


@pytest.mark.slow
def test_inductor_gives_the_eager_samples():
    from fewstep.hub.models import load

    model = load("digits")
    made = plan(model.process, "dpmpp-2m", 5)
    noise = Noise(7).normal(0, (4, 1, 8, 8))
    torch.testing.assert_close(compile(made, model)(noise, label=3), made(model, noise, label=3), rtol=1e-3, atol=1e-4)
