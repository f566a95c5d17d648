"""The flow's clock, pairs of times, states, and the student's velocities in it, held to the exact map of a Gaussian."""

from __future__ import annotations

import pytest
import torch
from distillation.mapped import F64, PROCESSES, SEVEN, beside, built, exact, network, points

from fewstep.core.student import default_start
from fewstep.distillation.maps import adaptive, at_noise_share, noise_share, pairs, rate
from fewstep.distillation.method import Setting
from fewstep.distillation.teacher import jump
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM

each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)


def states(process, n=SEVEN, start=None):
    """Noisy states of the Gaussian law, and pairs of times with both ends among them."""
    method, law = exact(process, "mean-flow", start)
    first = method.setting.start
    t = at_noise_share(process, torch.linspace(0.3, 0.8, n, dtype=F64), first)
    t[0] = first
    s = at_noise_share(process, torch.linspace(0.02, 0.25, n, dtype=F64), first)
    s[1], s[2] = process.t_zero, t[2]
    x = law.flow(torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=F64), torch.tensor(0.5), t)
    return method, law, x, t, s


@each
def test_the_clock_is_the_share_of_noise(process):
    t = torch.linspace(process.t_min, default_start(process, 0.5), 9, dtype=F64)
    r = noise_share(process, t)
    torch.testing.assert_close(r * process.alpha(t), (1 - r) * process.sigma(t))
    h = 1e-6 * t
    slope = (noise_share(process, t + h) - noise_share(process, t - h)) / (2 * h)
    torch.testing.assert_close(rate(process, t), slope, rtol=1e-6, atol=0)
    torch.testing.assert_close(at_noise_share(process, r, float(t[-1])), t, rtol=1e-9, atol=0)
    wide = at_noise_share(process, torch.tensor([0.0, 1.0], dtype=F64), float(t[-1]))
    assert wide[1] == t[-1] and float(wide[0]) == pytest.approx(process.t_min, rel=1e-6)


@each
def test_a_maps_answer_is_the_mean_velocity(process):
    method, law, x, t, s = states(process)
    y_t, y_s = (z / (process.alpha(a) + process.sigma(a))[:, None] for z, a in ((x, t), (law.flow(x, t, s), s)))
    u = method.mean_velocity(x, t, s, {})
    apart = s != t
    torch.testing.assert_close((method.way(t, s, x) * u)[apart], (y_t - y_s)[apart], rtol=0, atol=1e-12)
    assert torch.equal(u[2], method.velocity(x, t, {})[2])  # at s = t it is the velocity


@each
def test_derivatives_along_the_flow(process):
    method, law, x, t, s = states(process, start=1.0 if process.name == "flow" else None)
    found = {}
    for mode in ("jvp", "difference"):
        method.mode = mode
        found[mode] = method.along(x, t, s, method.velocity(x, t, {}), {})[1]
    # The exact one, of u along the exact flow.
    h = 1e-5
    r = noise_share(process, t)[1:-1]
    sides = []
    for sign in (1, -1):
        near = at_noise_share(process, r + sign * h, method.setting.start)
        there = law.flow(x[1:-1], t[1:-1], near)
        sides.append(method.mean_velocity(there, near, s[1:-1], {}))
    slope = (sides[0] - sides[1]) / (2 * h)
    torch.testing.assert_close(found["jvp"][1:-1], slope, rtol=0, atol=1e-6)
    assert bool(found["difference"].isfinite().all())  # at pure noise too
    torch.testing.assert_close(found["difference"][1:], found["jvp"][1:], rtol=0, atol=2e-4)


def test_differences_stay_within_the_clock():
    seen = []

    def function(s):
        seen.append(s)
        return s[:, None].square()

    method = exact(Flow(), "flow-map", tangent="difference")[0]
    s = torch.tensor([1e-4, 1e-3, 0.5, 1.0 - 1e-4], dtype=F64)
    slope = method.derivative(function, (s,), (torch.ones_like(s),), s)[1]
    torch.testing.assert_close(slope[:, 0], 2 * s, rtol=1e-9, atol=1e-12)
    assert all(bool(((0 < at) & (at < 1)).all()) for at in seen)


@each
def test_pairs_come_in_their_shares(process):
    setting = Setting(network(process), network(process), default_start(process, 0.5))
    t, s = pairs(setting, 4000, torch.Generator().manual_seed(0), 0.25, 0.5)
    assert bool((s <= t).all()) and float(t.min()) >= process.t_min and float(t.max()) == setting.start
    assert float((s == t).double().mean()) == pytest.approx(0.25, abs=0.02)
    clean = s == process.t_zero
    assert float(clean.double().mean()) == pytest.approx(0.5, abs=0.02)
    rest = ~clean & (s != t)
    r = noise_share(process, torch.stack([t[rest], s[rest]]))
    inside = r[0] < noise_share(process, torch.tensor(setting.start))
    # The median of the larger of two: of a logit-normal of mean -0.4 at probability sqrt(1/2).
    assert float(r[0].median()) == pytest.approx(float(torch.sigmoid(torch.tensor(-0.4 + 0.5450))), abs=0.03)
    assert bool((r[0] > r[1])[inside].all())


@each
def test_states_are_noised_data_or_the_teachers_own(process):
    data = points()
    method = built("flow-map", process, data=data)
    drawn = method.draw(5, torch.Generator().manual_seed(0))
    assert method.states == "data" and torch.equal(
        method.states_at(drawn, drawn["t"]), method.setting.noised(drawn["x0"], drawn["eps"], drawn["t"])
    )
    method, law = exact(process, "flow-map")
    drawn = method.draw(5, torch.Generator().manual_seed(0))
    x = method.setting.begin(drawn["z"])
    found = method.states_at(drawn, drawn["t"])
    there = law.flow(x, method.setting.times(method.setting.start, 5), drawn["t"])
    assert method.states == "teacher" and float(((found - there).norm() / there.norm()).detach()) < 0.02


@each
def test_still_weights_get_no_gradient(process):
    method, law, x, t, s = states(process)
    beside(method)
    x.requires_grad_(True)
    moved = method.landed(x, t, s, {})
    still = method.still(x, t, s, {})
    assert torch.equal(moved, still)
    slopes = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in (moved, still)]
    assert torch.equal(*slopes)
    weights = list(method.student.parameters())
    assert torch.autograd.grad(still.sum(), weights, allow_unused=True) == (None, None)
    assert all(part is not None for part in torch.autograd.grad(moved.sum(), weights))
    clean = torch.full_like(t, process.t_zero)
    assert torch.equal(method.still(x, clean, clean, {}), x)


def test_a_network_sees_the_clean_end_as_its_smallest_noise():
    model = network(EDM(), target=1)
    x, t = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.full((3,), 2.0, dtype=F64)
    clean, least = (torch.full_like(t, s) for s in (0.0, EDM().t_min))
    assert torch.equal(model(x, t, to=clean).x0, model(x, t, to=least).x0)
    assert not torch.equal(model(x, t, to=clean).x0, model(x, t).x0)
    landed = jump(EDM(), x, t, clean, model(x, t, to=clean).x0)
    torch.testing.assert_close(landed, model(x, t, to=clean).x0)


def test_costs_are_counted():
    evaluations = {}
    for mode in ("jvp", "difference"):
        method, law, x, t, s = states(EDM())
        method.mode = mode
        v = method.velocity(x, t, {})
        method.along(x, t, s, v, {})
        evaluations[mode] = method.setting.count.evaluations / SEVEN
    assert evaluations == {"jvp": 1 + 3 + 1, "difference": 1 + 3 + 2}


def test_the_adaptive_weight_is_a_constant():
    error = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=F64, requires_grad=True)
    loss = adaptive(error, 0.5, 0.75)
    torch.testing.assert_close(loss.detach(), torch.tensor([25 / 25.75**0.5, 0.0], dtype=F64))
    (slope,) = torch.autograd.grad(loss.sum(), error)
    torch.testing.assert_close(slope[0], 2 * error.detach()[0] / 25.75**0.5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean-flow", {"states": "dat"}, "'data'"),
        ("mean-flow", {"states": "data"}, "give data="),
        ("mean-flow", {"tangent": "vjp"}, "'jvp'"),
        ("mean-flow", {"velocity": "datum"}, "'data'"),
        ("mean-flow", {"same": 0.7, "clean": 0.5}, "shares of at most 1 in all"),
        ("mean-flow", {"guidance": 2.0}, "takes no guidance"),
        ("mean-flow", {"c": 0.0}, "c positive"),
        ("dmf", {"late": 0}, "at least 1 block"),
        ("dmf", {"late": 4}, "at most 3"),
        ("flow-map", {"rule": "lagrange"}, "'lagrangian'"),
        ("flow-map", {"clean": -0.1}, "at most 1 in all"),
        ("ctm", {"reach": 0.0}, "reach must be"),
        ("ctm", {"substeps": 3}, "power of two"),
        ("ctm", {"gan": -1.0}, "at least 0"),
        ("ctm", {"gan": 1.0}, "give data="),
        ("ctm", {"distance": "l2"}, "'l1'"),
        ("any-flow", {"policy": 2.0}, "share from 0 to 1"),
    ],
)
def test_bad_options_are_told(name, options, message):
    with pytest.raises(ValueError, match=message):
        built(name, EDM(), **options)
