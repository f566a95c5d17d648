"""What must hold on a GPU as on the CPU. Run with `pytest -m gpu`; left out where there is none."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.core.unrolled import unrolled
from fewstep.sampling.build import plan, solver_names

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_bit_identical_to_the_cpus(dtype):
    for shape in ((8, 3, 17, 5), (3, 1), (20, 4, 64, 64), (2, 3, 100, 100)):
        for draw in (0, 3):
            cpu = fs.Noise(5, 2).normal(draw, shape, "cpu", dtype)
            assert torch.equal(fs.Noise(5, 2).normal(draw, shape, "cuda", dtype).cpu(), cpu)


@pytest.mark.parametrize("name", solver_names())
def test_samples_agree_with_the_cpus(name, make_mixture):
    from fewstep.processes.ve import EDM

    model = make_mixture(EDM(), (2, 3))
    noise = fs.Noise(7).normal(0, (5, 2, 3))
    made = plan(EDM(), name, 8, "karras")
    cpu = made(model, noise, seed=7)
    model = model.to("cuda")
    torch.testing.assert_close(made(model, noise.to("cuda"), seed=7).cpu(), cpu, rtol=1e-4, atol=1e-4)


def test_a_global_tf32_setting_does_not_reach_the_combination(make_mixture):
    from fewstep.processes.ve import EDM

    model = make_mixture(EDM(), (2, 3)).to("cuda")
    noise = fs.Noise(7).normal(0, (5, 2, 3), "cuda")
    made = plan(EDM(), "unipc-3", 8)
    before = made(model, noise)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(made(model, noise), before)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_bf16_digits_and_one_compiled_graph():
    model = fs.load("digits", device="cuda")
    full = fs.sample(model, 16, label=3, steps=6)
    half = fs.sample(fs.load("digits", device="cuda").to(torch.bfloat16), 16, label=3, steps=6)
    assert float((half - full).norm() / full.norm()) < 0.1
    made = plan(model.process, "dpmpp-2m", 6)
    times, weights, conversions = made.table.numbers("x0", torch.device("cuda"), torch.float32)
    condition = model.check_condition({"label": 3}, 16, torch.device("cuda"))
    noise = fs.Noise(0).normal(0, (16, 1, 8, 8), "cuda") * made.start[1]
    compiled = torch.compile(unrolled, fullgraph=True)
    with torch.no_grad():
        x = compiled(made.table.structure, model, noise, times, weights, conversions, [], condition)
    torch.testing.assert_close(x, made(model, noise / made.start[1], label=3), rtol=1e-3, atol=1e-3)
