"""The flow map of any denoiser by integration ("exact-map")."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction, expand
from fewstep.core.student import Student
from fewstep.denoisers.exact_map import ExactMap
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64
PROCESSES = [EDM(), VP(), Flow()]
NOISE = Noise(3).normal(0, (6, 2), "cpu", F64)


def test_jumps_end_where_a_fine_plan_does(make_mixture):
    process = VP()
    model = make_mixture(process)
    exact = plan(process, "vab-4", 400, "karras")(model, NOISE, dtype=F64)
    for steps in (1, 3):
        found = plan(process, "flow-map", steps)(ExactMap(model, 12), NOISE, dtype=F64)
        torch.testing.assert_close(found, exact, rtol=0, atol=2e-6)


def jump(process, x, t, s, g):
    a, b, c, d = (expand(v, x) for v in (process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)))
    return d / b * x + (c - a * d / b) * g


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_two_jumps_are_one_at_times_of_their_own(process, make_mixture):
    model = ExactMap(make_mixture(process), 24)
    at = [process.t_max, process.time(-0.5), process.time(0.5), process.t_zero]
    t, u, s = (
        torch.tensor([at[i] for i in row], dtype=F64) for row in ([0, 0, 1, 1, 2, 2], [1, 2, 2, 0, 1, 1], [3] * 6)
    )
    x = NOISE * (expand(process.sigma(t), NOISE) + 0.5)
    middle = jump(process, x, t, u, model(x, t, to=u).x0)
    torch.testing.assert_close(
        jump(process, middle, u, s, model(middle, u, to=s).x0), jump(process, x, t, s, model(x, t, to=s).x0),
        rtol=0, atol=1e-7,
    )  # fmt: skip
    # Kernels differ with the batch on some processors, and x0 divides by what the jump leaves.
    torch.testing.assert_close(model(x, t, to=s).x0[:1], model(x[:1], t[0], to=s[:1]).x0, rtol=0, atol=1e-9)


def test_it_is_of_fifth_order(make_mixture):
    model, t, s = make_mixture(VP()), torch.tensor(1.0, dtype=F64), torch.zeros(6, dtype=F64)
    fine = ExactMap(model, 32)(NOISE, t, to=s).x0
    errors = [float((ExactMap(model, n)(NOISE, t, to=s).x0 - fine).norm()) for n in (3, 6, 12)]
    assert errors[0] > 2**4.3 * errors[1] > 2 ** (4.3 + 4.3) * errors[2] > 0


def test_towards_its_own_time_it_is_the_model(make_mixture):
    process = EDM()
    model = make_mixture(process)
    exact, t = ExactMap(model, 4), torch.tensor(1.3, dtype=F64)
    near, mean = exact(NOISE, t, to=(t * (1 - 1e-6)).expand(6)).x0, model(NOISE, t).x0
    assert 1e-9 < float((near - mean).abs().max()) < 1e-6
    to = torch.tensor([torch.nan, 1.3, 0.0, torch.nan, 0.5, 2.0], dtype=F64)
    mixed = exact(NOISE, t, to=to).x0
    assert torch.equal(mixed[[0, 1, 3]], mean[[0, 1, 3]]) and float((mixed - mean)[[2, 4, 5]].abs().amin()) > 1e-3
    assert torch.equal(exact(NOISE, t).x0, mean)
    assert torch.equal(ExactMap(model, answers="denoiser")(NOISE, t).x0, mean)
    assert ExactMap(model, answers="denoiser").student is None


class Labelled(Denoiser):
    """v of data that are one point, +1 or -1 by the label: the flow is a straight line to it."""

    def __init__(self):
        super().__init__()
        self.process, self.shape, self.conditions = Flow(), (2,), {"label": Label(2)}

    def forward(self, x, t, label=None):
        x0 = (1.0 - 2.0 * label.to(x.dtype))[:, None].expand_as(x)
        return Prediction(x0, "x0", x, t, self.process).replaced((x - x0) / expand(t, x), kind="velocity")


def test_conditions_kinds_and_dtypes_are_the_models():
    jumps = ExactMap(Labelled(), 3, "jump")
    x, t = NOISE.float(), torch.tensor(0.8)
    answer = jumps(x, t, label=torch.tensor([0, 1, 0, 1, 1, 0]))
    assert answer.kind == "velocity" and answer.value.dtype == torch.float32
    torch.testing.assert_close(answer.x0[:, 0], torch.tensor([1.0, -1, 1, -1, -1, 1]), rtol=1e-5, atol=1e-5)
    assert jumps.student == Student("jump", "exact-map") and jumps.plan is None and not jumps.carries
    model = ExactMap(Labelled(), 3)
    assert set(model.check_condition({"label": 1}, 2, x.device)) == {"label"}
    assert model.check_condition({"label": 1, "to": 0.5}, 2, x.device)["to"].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="to must be a finite time, got inf"):
        model.check_condition({"to": float("inf")}, 2, x.device)
    with pytest.raises(ValueError, match="a flow map already"):
        ExactMap(model)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        ExactMap(Labelled(), 0)
    with pytest.raises(ValueError, match="kind of student"):
        ExactMap(Labelled(), answers="maps")
