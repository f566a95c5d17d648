"""What all methods of guidance share: intervals, clamps, rescaling, scales that are functions, methods in methods."""

from __future__ import annotations

import pytest
import torch
from scaled import A, B, Scaled

import fewstep as fs
from fewstep.core.memory import Memory, ask
from fewstep.guidance.cfg import cfg
from fewstep.guidance.guided import Guided
from fewstep.processes.vp import VP

F64 = torch.float64
NOISE = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def variance(plan: fs.Plan, weights: list[float]) -> float:
    """The exact end variance over that of the start, of the ODE on EDM's clock, one scale a step."""
    ratio = 1.0
    for high, low, w in zip(plan.times[:-1], plan.times[1:], weights, strict=True):
        ratio *= ((A**2 + low**2) / (A**2 + high**2)) ** w * ((B**2 + low**2) / (B**2 + high**2)) ** (1 - w)
    return ratio


def test_an_interval_is_exact_and_saves_its_rows(scaled):
    plan = fs.plan(scaled.process, "heun", steps=400, timesteps="log-snr")
    guided = fs.guide(scaled, "cfg", scale=3.0, interval=(0.2, 5.0))
    x = NOISE * plan.start[1]
    result = plan.run(guided, NOISE, label=0, dtype=F64)
    at = [3.0 if 0.2 <= level <= 5.0 else 1.0 for level in plan.times]
    weights = [(a + b) / 2 for a, b in zip(at[:-1], at[1:], strict=True)]  # heun's answers lie at a step's two ends
    torch.testing.assert_close(
        result.samples / x, torch.full_like(x, variance(plan, weights) ** 0.5), rtol=2e-3, atol=0
    )
    inside = sum(0.2 <= op.t <= 5.0 for op in plan.evaluations)
    assert 0 < inside < plan.nfe and result.report["rows"] == plan.nfe + inside
    everywhere = plan.run(fs.guide(scaled, "cfg", scale=3.0), NOISE, label=0, dtype=F64)
    expected = torch.full_like(x, variance(plan, [3.0] * len(weights)) ** 0.5)
    torch.testing.assert_close(everywhere.samples / x, expected, rtol=2e-3, atol=0)


def test_without_a_memory_an_interval_gives_the_same_values(scaled):
    guided = cfg(scaled, 3.0, interval=(0.2, 5.0))
    named = guided.check_condition({"label": 0}, 4, NOISE.device)
    for t in (0.1, 0.2, 1.0, 6.0):
        memory = Memory(4, (t,), 0.0)
        memory.advance()
        time = torch.tensor(t, dtype=F64)
        inside, alone = ask(guided, NOISE, time, memory, named).value, guided(NOISE, time, **named).value
        torch.testing.assert_close(inside, alone, rtol=1e-12, atol=0)
    times = torch.tensor([0.1, 0.3, 4.0, 6.0], dtype=F64)
    rows = guided(NOISE, times, **named).value
    for i, t in enumerate(times):
        torch.testing.assert_close(rows[i], guided(NOISE, t, **named).value[i])


def test_a_scale_as_a_function_of_log_snr(scaled):
    ramp = lambda log_snr: 2.0 + 0.5 * (log_snr < 0)  # noqa: E731
    plan = fs.plan(scaled.process, "ddim", steps=12)
    guided = cfg(scaled, ramp)
    made = plan.run(guided, NOISE, label=0, dtype=F64)
    scales = [float(ramp(scaled.process.log_snr(op.t))) for op in plan.evaluations]
    assert {2.0, 2.5} == set(scales)
    by_plan = fs.plan(scaled.process, "ddim", steps=12, guidance=scales)
    torch.testing.assert_close(made.samples, by_plan(cfg(scaled, 2.0), NOISE, label=0, dtype=F64))
    # A caller's scale takes its place; requests at times of their own share calls.
    wanted = plan(cfg(scaled, 4.0), NOISE, label=0, dtype=F64)
    torch.testing.assert_close(plan(guided, NOISE, label=0, guidance=4.0, dtype=F64), wanted)
    torch.testing.assert_close(plan(guided, NOISE, label=0, guidance=[4.0] * 4, dtype=F64), wanted)
    requests = [(plan, NOISE, {"label": 0}), (fs.plan(scaled.process, "ddim", 5), NOISE[:1], {"label": 1})]
    requests.append((fs.plan(scaled.process, "ddim", 7), NOISE[:2], {"label": 0, "guidance": [1.0, 3.0]}))
    for x, (own, noise, named) in zip(fs.run_mixed(requests, guided, dtype=F64), requests, strict=True):
        torch.testing.assert_close(x, own(guided, noise, dtype=F64, **named))
    # Without a memory.
    t = torch.tensor([0.5, 0.5, 2.0, 2.0], dtype=F64)
    named = guided.check_condition({"label": 0}, 4, NOISE.device)
    x0 = guided(NOISE, t, **named).value
    torch.testing.assert_close(x0[:2], cfg(scaled, 2.0)(NOISE[:2], t[0], label=named["label"][:2]).value)
    torch.testing.assert_close(x0[2:], cfg(scaled, 2.5)(NOISE[2:], t[2], label=named["label"][2:]).value)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_a_clamp_cuts_the_guided_x0(kind):
    model = Scaled(VP(), kind)
    t, label = torch.tensor(0.3, dtype=F64), torch.zeros(4, dtype=torch.long)
    plain = cfg(model, 6.0)(3 * NOISE, t, label=label).x0
    for clamp, bounds in ((True, (-1.0, 1.0)), ((-0.5, 2.0), (-0.5, 2.0))):
        cut = cfg(model, 6.0, clamp=clamp)(3 * NOISE, t, label=label)
        assert cut.kind == kind and bool((plain.abs() > 1).any())
        torch.testing.assert_close(cut.x0, plain.clamp(*bounds))
    # At pure noise nothing but finite is asked of an eps; at none the answer is the state, cut.
    for time in (model.process.t_max, model.process.t_zero):
        answer = cfg(model, 6.0, clamp=True)(NOISE, torch.tensor(time, dtype=F64), label=label)
        assert bool(torch.isfinite(answer.value).all())


def test_rescaling_brings_the_standard_deviation_back(scaled):
    t, label = torch.tensor(1.0, dtype=F64), torch.zeros(4, dtype=torch.long)
    base, guided = scaled(NOISE, t, label=label).value, cfg(scaled, 5.0)(NOISE, t, label=label).value
    whole = cfg(scaled, 5.0, rescale=1.0)(NOISE, t, label=label).value
    torch.testing.assert_close(whole.std(1), base.std(1))
    half = cfg(scaled, 5.0, rescale=0.5)(NOISE, t, label=label).value
    torch.testing.assert_close(half, (whole + guided) / 2)


def test_methods_around_methods_are_one_wrapper(scaled):
    both = fs.guide(cfg(scaled, 3.0), "cfg", scale=1.5, negative={"label": 1})
    assert isinstance(both, Guided) and both.model is scaled and len(both.guides) == 2
    t, label = torch.tensor(1.0, dtype=F64), torch.zeros(4, dtype=torch.long)
    given, other, empty = (scaled(NOISE, t, label=torch.full((4,), n)).value for n in (0, 1, 2))
    expected = given + 2.0 * (given - empty) + 0.5 * (given - other)
    scaled.rows = 0
    torch.testing.assert_close(both(NOISE, t, label=label).value, expected)
    assert scaled.rows == 12  # one call of three rows a sample
    # The condition sets the first method's scale, and `negative` its weak answer.
    named = both.check_condition({"label": 0, "guidance": 2.0, "negative": {"label": 1}}, 4, NOISE.device)
    torch.testing.assert_close(both(NOISE, t, **named).value, given + 1.5 * (given - other))


def test_a_sum_of_answers(scaled):
    guided = fs.guide(cfg(scaled, 3.0), "cfg", scale=1.5, negative={"label": 1})
    t, label = torch.tensor(1.0, dtype=F64), torch.zeros(4, dtype=torch.long)
    weights, answers = guided.terms(NOISE, t, None, {"label": label})
    assert weights == (3.5, -2.0, -0.5)
    whole = sum(w * answer.value for w, answer in zip(weights, answers, strict=True))
    torch.testing.assert_close(whole, guided(NOISE, t, label=label).value)
    with pytest.raises(ValueError, match="no sum|a sum of answers with fixed weights"):
        cfg(scaled, 3.0, interval=(0.1, 1.0)).terms(NOISE, t, None, {"label": label})
